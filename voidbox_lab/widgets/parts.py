"""Parts of a view that nobody presses, as HTML: the same for the live view and the frozen one. Autoescaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from voidbox_lab.observe.quantities import size
from voidbox_lab.widgets.gauges import SPARK_HEIGHT, SPARK_WIDTH, Gauge, lines
from voidbox_lab.widgets.vitals import Vitals


@cache
def environment() -> Environment:
    """Our templates."""
    made = Environment(
        loader=PackageLoader("voidbox_lab.widgets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"width": SPARK_WIDTH, "height": SPARK_HEIGHT}
    made.filters["size"] = size
    return made


def meters(gauges: list[Gauge]) -> str:
    """Bars with what is spent and the most that may be."""
    return str(_macros().meters(gauges)).strip()


def vitals_table(vitals: Vitals) -> str:
    """A box's lines, larger, and its busiest processes."""
    return str(_macros().vitals(list(lines(vitals)), vitals)).strip()


@cache
def _macros() -> Any:
    return environment().get_template("parts.html.j2").module

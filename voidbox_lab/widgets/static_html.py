"""A view state as frozen HTML: no scripts, readable with the style stripped, as in GitHub's notebook view."""

from __future__ import annotations

import re
import time
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from voidbox_lab.widgets.present import SPARK_HEIGHT, SPARK_WIDTH, present
from voidbox_lab.widgets.run_view import CSS
from voidbox_lab.widgets.view_state import ViewState


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("voidbox_lab.widgets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("run_view.html.j2")


@cache
def _style() -> str:
    """The view's style without comments and line breaks: it is saved with every output."""
    return re.sub(r"\s+", " ", re.sub(r"/\*.*?\*/", "", CSS, flags=re.DOTALL)).strip()


def render(state: ViewState, *, now: float | None = None) -> str:
    """`state` as one HTML element, with its style. `now` (UNIX time) dates what is still running."""
    view: dict[str, Any] = present(state, time.time() if now is None else now)
    return _template().render(view=view, style=_style(), width=SPARK_WIDTH, height=SPARK_HEIGHT)

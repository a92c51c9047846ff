"""How dashboards look: style sheets, escaped HTML, figures without ornament. Not for what they show.

Everything that may have come from a guest goes through `parts`, whose templates escape, or is text of a tooltip's
label, which Bokeh writes as text. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import panel as pn
from bokeh.models import DatetimeTickFormatter
from bokeh.plotting import figure

HERE = Path(__file__).parent
COLORS = ("#4e8ef7", "#f0883e", "#2da160", "#a371f7", "#e0575b", "#1fa8b8", "#c9a227", "#8b949e")
"""Of the largest, the second largest, …; the last is for what is left. Apart from each other on light and dark."""
NEUTRAL = "#8b949e"
ACCENT, SECOND = COLORS[0], COLORS[1]


@cache
def css(*names: str) -> str:
    """Style sheets of ours, one after the other."""
    return "\n".join((HERE / "static" / f"{name}.css").read_text(encoding="utf-8") for name in names)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True)


@cache
def parts() -> Any:
    """The macros of ``parts.html.j2``; what is given to them is escaped."""
    return _templates().get_template("parts.html.j2").module


def html(text: str = "", **options: Any) -> pn.pane.HTML:
    """A pane for what a macro of `parts` gave."""
    options = {"sizing_mode": "stretch_width", "margin": 0} | options
    return pn.pane.HTML(text, stylesheets=[css("parts")], **options)


def choice(options: dict[str, str] | list[str], value: str, name: str) -> pn.widgets.RadioButtonGroup:
    """One of a few, all in sight; `name` is for who cannot see them."""
    return pn.widgets.RadioButtonGroup(
        options=options, value=value, label=name, margin=(0, 14, 0, 0), align="end", stylesheets=[css("controls")]
    )


def tabs(options: list[str], name: str) -> pn.widgets.RadioButtonGroup:
    """One of a few views."""
    return pn.widgets.RadioButtonGroup(
        options=options, value=options[0], label=name, margin=0, sizing_mode="stretch_width",
        stylesheets=[css("tabs")],
    )  # fmt: skip


def select(options: dict[str, str], name: str, width: int) -> pn.widgets.Select:
    """One of many."""
    return pn.widgets.Select(
        options=options, label=name, width=width, margin=(0, 14, 0, 0), stylesheets=[css("controls")]
    )


def chart(*, height: int, y_format: Any, x_range: Any = None) -> Any:
    """A figure over time: a frame of nothing but horizontal lines and labels. Times are those of a wall clock."""
    options = {} if x_range is None else {"x_range": x_range}
    plot = figure(
        height=height, sizing_mode="stretch_width", x_axis_type="datetime", toolbar_location=None, tools="",
        background_fill_color=None, border_fill_color=None, outline_line_color=None, min_border_left=54,
        stylesheets=[css("figure")], **options,
    )  # fmt: skip
    plot.xgrid.visible = False
    plot.ygrid.grid_line_color = NEUTRAL
    plot.ygrid.grid_line_alpha = 0.6
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = axis.major_label_text_color = NEUTRAL
        axis.minor_tick_line_color = None
        axis.major_label_text_font_size = "12px"
        axis.major_label_text_font = "system-ui, sans-serif"
    plot.yaxis.axis_line_color = plot.yaxis.major_tick_line_color = None
    plot.yaxis.stylesheets = [css("axis")]
    plot.yaxis.ticker.desired_num_ticks = 4
    plot.yaxis.formatter = y_format
    plot.y_range.start = 0
    plot.xaxis.formatter = DatetimeTickFormatter(
        seconds="%H:%M:%S", minsec="%H:%M:%S", minutes="%H:%M", hourmin="%H:%M", hours="%H:%M", days="%-d %b",
        months="%b %Y", years="%Y",
    )  # fmt: skip
    return plot

"""Dashboards across runs, with Panel: cost over time, runs side by side, telemetry. For one run: `run_view`.

    import voidbox_lab
    voidbox_lab.dashboard()          # in a notebook; `voidbox dashboard` serves the same page alone

Panel and Bokeh are imported when a dashboard is asked for, and at no other time: they take a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from voidbox_lab.widgets.dashboards.inline import Frame


def dashboard(theme: Literal["light", "dark"] | None = None, height: int = 860) -> Frame:
    """The dashboard, live, as an object that a notebook shows: a page of a server in this kernel, on loopback.

    Args:
        theme: None: as the browser is set.
        height: in pixels.

    Raises:
        VoidboxError: there is no daemon, and none can be started.
    """
    from voidbox_lab.widgets.dashboards.inline import shown

    return shown(theme, height)

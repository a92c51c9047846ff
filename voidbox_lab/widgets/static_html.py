"""A view state as frozen HTML: no scripts, readable with the style stripped, as in GitHub's notebook view."""

from __future__ import annotations

import time
from functools import cache

from voidbox_lab.cards.card import squeezed
from voidbox_lab.widgets.parts import environment
from voidbox_lab.widgets.present import drawn, present
from voidbox_lab.widgets.run_view import CSS
from voidbox_lab.widgets.view_state import ViewState


@cache
def _style() -> str:
    return squeezed(CSS)


def render(state: ViewState, *, now: float | None = None) -> str:
    """`state` as one HTML element, with its style. `now` (UNIX time) dates what is still running."""
    view = present(state, time.time() if now is None else now)
    anchor = f"vbx-{state.run}-"
    template = environment().get_template("run_view.html.j2")
    return template.render(view=view, style=_style(), graph=drawn(state, anchor), anchor=anchor)

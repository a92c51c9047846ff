"""The live view of one run as an anywidget: Python keeps the state, the browser gets patches of it.

Nothing is sent before a browser has said ``ready``, so a headless run costs no messages. The synced
trait is serialized on demand: a view opened late, or after a reload, starts from the present.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from voidbox_lab.cards.card import CSS as CARD_CSS
from voidbox_lab.widgets.present import patch, present
from voidbox_lab.widgets.view_state import ViewState

_STATIC = Path(__file__).parent / "static"
CSS = CARD_CSS + (_STATIC / "run_view.css").read_text(encoding="utf-8")


class RunView(anywidget.AnyWidget):
    """Shows a `ViewState`; calls `on_message` with what the user asks for: ``{"kind": "act", "action": …}`` for a
    button, ``{"kind": "more", "ticket": …, …}`` for a page, which `answer` answers."""

    # Text, not paths: anywidget watches paths for changes with a thread of its own.
    _esm = (_STATIC / "run_view.js").read_text(encoding="utf-8")
    _css = CSS

    view = traitlets.Dict().tag(sync=True, to_json=lambda _value, widget: widget.present())

    def __init__(self, state: ViewState, on_message: Callable[[dict[str, Any]], None]) -> None:
        self._now = self._sent = state
        self._rev = 0
        self.looks = 0
        """How often a browser has asked for the whole: more than once where a page was reloaded."""
        self._on_message = on_message
        super().__init__()
        self.on_msg(self._received)

    def present(self) -> dict[str, Any]:
        """The view as it is now."""
        return present(self._now, time.time())

    def show(self, state: ViewState) -> None:
        """Take `state` as the present one; it is sent by the next `flush`."""
        self._now = state

    def flush(self) -> int:
        """Send what changed since the last flush, if anybody listens; returns the bytes sent, about."""
        if not self.looks or self._now is self._sent:
            return 0
        changed = patch(self._sent, self._now, time.time())
        message = {"kind": "patch", "base": self._rev, "rev": self._rev + 1, "view": changed}
        self._rev, self._sent = self._rev + 1, self._now
        self.send(message)
        return len(json.dumps(changed))

    def answer(self, ticket: object, page: dict[str, Any]) -> None:
        """Send the page that was asked for with `ticket`."""
        self.send({"kind": "page", "ticket": ticket, "page": page})

    def _received(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind in {"act", "more"}:
            self._on_message(content)
        elif kind == "ready":
            self.looks += 1
            # Any change up to here is in the whole, for every view of this widget.
            self._rev, self._sent = self._rev + 1, self._now
            self.send({"kind": "whole", "rev": self._rev, "view": self.present()})

    def close(self) -> None:
        """Forget the widget here and in the browser, its layout included, so that no notebook saves it."""
        layout = self.layout
        super().close()
        if layout is not None:
            layout.close()

"""Where a run is shown: a notebook's output, frozen when the run ends, or plain lines on a terminal.

A surface is opened with a state, shown newer ones, and closed with the last. `pump` runs beside
that, in the same task group: it paces what goes to a browser and waits for its buttons.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args

import anyio
from IPython.display import display, update_display

from voidbox_lab.errors import UserError
from voidbox_lab.widgets import plain, static_html
from voidbox_lab.widgets.run_view import RunView
from voidbox_lab.widgets.view_state import ViewState

RUN_MIME = "application/vnd.voidbox.run+json"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
FLUSH_S = 0.1
"""Least time between two messages to the browser."""
BYTES_PER_S = 400_000
"""jupyter_server drops output above 1 MB/s per kernel; a few views must fit."""

MAX_ASKED = 16
"""Pages that a browser asked for and has not got; of more nobody who clicks would know."""

LINGER_S = 60.0
"""How long a page that is being reloaded at a run's end may take to ask for the view again."""

Action = Literal["cancel", "pause", "resume"]


class Controls(Protocol):
    """What a user can do to the run that is shown. Trouble is told in the view."""

    async def act(self, action: Action) -> None:
        """Ask the daemon for it."""

    async def more(self, request: dict[str, Any]) -> dict[str, Any]:
        """A page of what the view left out; or ``error``, a sentence."""


class Surface(Protocol):
    """Shows one run."""

    def open(self, state: ViewState) -> None:
        """Before the first event."""

    def show(self, state: ViewState) -> None:
        """After each event; cheap."""

    def close(self, state: ViewState) -> None:
        """The last state; nothing is shown after it."""

    async def pump(self, controls: Controls) -> None:
        """Runs until its scope is cancelled; does what the user asks for through `controls`."""


class PlainSurface:
    """Lines, written as things happen."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or (lambda line: print(line, flush=True))  # noqa: T201 - the surface of a terminal
        self._seen: ViewState | None = None

    def open(self, state: ViewState) -> None:
        """Name the run and its stages."""
        self.show(state)

    def show(self, state: ViewState) -> None:
        """Write what changed."""
        for line in plain.lines(self._seen, state):
            self._write(line)
        self._seen = state

    def close(self, state: ViewState) -> None:
        """Write what changed last."""
        self.show(state)

    async def pump(self, controls: Controls) -> None:
        """Nothing to pace: Ctrl-C cancels."""
        await anyio.sleep_forever()


class QuietSurface:
    """Shows nothing."""

    def open(self, state: ViewState) -> None:
        """Nothing."""

    def show(self, state: ViewState) -> None:
        """Nothing."""

    def close(self, state: ViewState) -> None:
        """Nothing."""

    async def pump(self, controls: Controls) -> None:
        """Nothing."""
        await anyio.sleep_forever()


class NotebookSurface:
    """One output with every form of the view; the live one leaves it when the run ends.

    A front end takes the richest form it knows: the widget, else HTML, else text. After `close`
    the same output holds HTML and text alone, and so does the saved notebook.
    """

    def __init__(self, *, live: bool = True) -> None:
        self._live = live
        self._widget: RunView | None = None
        self._asked, self._asking = anyio.create_memory_object_stream[dict[str, Any]](MAX_ASKED)
        self._reading = 0
        """Pages that are being read."""
        self._display_id = ""

    def open(self, state: ViewState) -> None:
        """Put the output into the cell."""
        data = bundle(state)
        if self._live:
            self._widget = widget = RunView(state, on_message=lambda request: self._ask(widget, request))
            data[WIDGET_MIME] = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
        self._display_id = f"voidbox-{state.run}-{os.urandom(4).hex()}"
        display(data, raw=True, display_id=self._display_id)  # type: ignore[no-untyped-call]

    def show(self, state: ViewState) -> None:
        """Keep the state for the next flush."""
        if self._widget is not None:
            self._widget.show(state)

    def close(self, state: ViewState) -> None:
        """Freeze: replace the output by its static forms and forget the widget.

        A page that was reloaded meanwhile does not know the output any more, but gets the widget again from the
        kernel: there it stays, as the run ended, as long as the kernel does. Whether there is such a page is known
        once it has come up.
        """
        update_display(bundle(state), raw=True, display_id=self._display_id)  # type: ignore[no-untyped-call]
        self._asked.close()
        widget, self._widget = self._widget, None
        if widget is None:
            return
        if not widget.looks:
            widget.close()
            return
        widget.show(state)
        widget.flush()
        asyncio.get_running_loop().call_later(LINGER_S, _forget, widget)

    async def pump(self, controls: Controls) -> None:
        """Flush at most ten times a second, more slowly the more there is to send."""
        async with anyio.create_task_group() as group, self._asking:
            group.start_soon(paced, self._flush)
            async for request in self._asking:
                group.start_soon(self._answer, request, controls)

    def _ask(self, widget: RunView, request: dict[str, Any]) -> None:
        try:
            if request["kind"] != "act" and self._reading >= MAX_ASKED:
                raise anyio.WouldBlock
            self._asked.send_nowait(request)
        except anyio.WouldBlock:
            widget.answer(request.get("ticket"), {"error": "Too much was asked for at once; try again."})
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            widget.answer(request.get("ticket"), {"error": "The run is over; 'voidbox logs' has all of it."})

    async def _answer(self, request: dict[str, Any], controls: Controls) -> None:
        if request["kind"] == "act":
            if request.get("action") in get_args(Action):
                await controls.act(request["action"])
            return
        self._reading += 1
        try:
            page = await controls.more(request)
        finally:
            self._reading -= 1
        if self._widget is not None:
            self._widget.answer(request.get("ticket"), page)

    def _flush(self) -> int:
        return self._widget.flush() if self._widget is not None else 0


def _forget(widget: RunView) -> None:
    if widget.looks < 2:
        widget.close()


async def paced(flush: Callable[[], int]) -> None:
    """Call `flush`, which tells how many bytes it has sent, at most ten times a second and `BYTES_PER_S`."""
    while True:
        sent = flush()
        await anyio.sleep(max(FLUSH_S, sent / BYTES_PER_S))


def bundle(state: ViewState) -> dict[str, Any]:
    """The frozen view as a MIME bundle: HTML, text and data."""
    return {"text/html": static_html.render(state), "text/plain": plain.summary(state), RUN_MIME: facts(state)}


def facts(state: ViewState) -> dict[str, Any]:
    """What programs read from a saved notebook: states, labels and figures, without the transcript."""
    stages = {
        s.name: {
            "state": s.state,
            "isolation": s.box.isolation if s.box else None,
            "vsock": s.box.vsock if s.box else None,
            "boot_s": s.box.boot_s if s.box else None,
            "cached": s.cached.model_dump() if s.cached else None,
            "attempts": s.attempt,
            "model": s.model,
            "model_source": s.model_source,
            "tokens": s.tokens.total,
            "cost_usd": s.cost_usd if s.turns and _finite(s.cost_usd) else None,
            "duration_s": s.finished_at - s.started_at if s.finished_at and s.started_at else None,
            "denied": s.doings.denied,
            "connections": s.doings.connections,
            "bytes_out": s.doings.bytes_out,
            "bytes_in": s.doings.bytes_in,
            "files": dict(s.doings.files),
            "trouble": s.trouble.model_dump(mode="json") if s.trouble else None,
            "output": s.output.text if s.output is not None else None,
        }
        for s in state.stages.values()
    }
    return {"version": 1, "run": state.run, "state": state.state, "stages": stages}


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def choose(*, quiet: bool = False, shell: Any = None) -> Surface:
    """The surface that fits: a notebook's output in a kernel, lines elsewhere, nothing if `quiet`.

    `VOIDBOX_VIEW` overrides: ``widget``, ``html`` (no live view: for front ends
    without widgets) or ``plain``.

    Raises:
        UserError: `VOIDBOX_VIEW` is something else.
    """
    wanted = os.environ.get("VOIDBOX_VIEW", "auto")
    if wanted not in {"auto", "widget", "html", "plain"}:
        raise UserError(
            f"VOIDBOX_VIEW={wanted!r} is not one of auto, widget, html, plain; set one of them or unset it."
        )
    if quiet:
        return QuietSurface()
    if wanted == "plain" or (wanted == "auto" and not in_kernel(shell)):
        return PlainSurface()
    return NotebookSurface(live=wanted != "html")


def in_kernel(shell: Any = None) -> bool:
    """Whether this process is a Jupyter kernel with a front end that shows rich output."""
    if shell is None:
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None

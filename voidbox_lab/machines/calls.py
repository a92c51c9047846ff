"""The one door to libvirt: called in bounded threads, with its errors made ours.

A libvirt call blocks, and can block for ever when its daemon or a QEMU monitor hangs. `call` runs each
in a daemon thread of its own: a stuck one is left behind without holding up the event loop, the other
calls or the interpreter's exit (a thread pool would do all three).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio

from voidbox_lab.errors import ProviderError
from voidbox_lab.machines.library import libvirt, libvirt_qemu
from voidbox_lab.machines.troubles import provider_error

T = TypeVar("T")

__all__ = ["call", "detach", "libvirt", "libvirt_qemu"]


class _Work(Generic[T]):
    """One call in its thread, and the agreement on who takes its result."""

    def __init__(
        self, function: Callable[..., T], args: tuple[Any, ...], late: Callable[[T], object] | None
    ) -> None:
        self._function, self._args, self._late = function, args, late
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._abandoned = False
        self.done = anyio.Event()
        self.result: T
        self.error: BaseException | None = None
        self._finished = False

    def run(self) -> None:
        try:
            self.result = self._function(*self._args)
        except BaseException as error:  # noqa: BLE001, RUF100 - carried to the caller, whatever it is
            self.error = error
        with self._lock:
            self._finished, abandoned = True, self._abandoned
        if abandoned:
            self._clean_up()
            return
        try:
            self._loop.call_soon_threadsafe(self.done.set)
        except RuntimeError:  # the loop closed meanwhile
            self._clean_up()

    def abandon(self) -> None:
        """The caller leaves without the result; whoever has it undoes what it stands for."""
        with self._lock:
            self._abandoned = True
            finished = self._finished
        if finished:
            detach(self._clean_up)

    def _clean_up(self) -> None:
        # Nobody is left to be told of a failure here; the sweep is the second line.
        if self._late is not None and self.error is None:
            with suppress(libvirt.libvirtError):
                self._late(self.result)


async def call(
    what: str, timeout_s: float, function: Callable[..., T], *args: Any, late: Callable[[T], object] | None = None
) -> T:
    """``function(*args)`` in a thread, for at most `timeout_s` seconds.

    Args:
        what: the deed as a verb phrase, for messages: "libvirt could not {what}: …".
        late: undoes a result that arrives after the caller gave up or was cancelled.

    Raises:
        ProviderError: libvirt failed, or did not answer in time (cause ``timeout``).
    """
    work = _Work(function, args, late)
    threading.Thread(target=work.run, name=f"libvirt: {what}", daemon=True).start()
    try:
        with anyio.fail_after(timeout_s):
            await work.done.wait()
    except TimeoutError:
        work.abandon()
        raise ProviderError(
            f"libvirt did not {what} within {timeout_s:g} s; see whether the host is overloaded, then try again.",
            cause="timeout",
        ) from None
    except BaseException:
        work.abandon()
        raise
    if work.error is None:
        return work.result
    if isinstance(work.error, libvirt.libvirtError):
        raise provider_error(work.error, what) from work.error
    raise work.error


def detach(function: Callable[[], object]) -> None:
    """Run `function` in a thread nobody waits for: last rites that may hang or fail without consequence."""

    def run() -> None:
        with suppress(libvirt.libvirtError):
            function()

    threading.Thread(target=run, daemon=True).start()

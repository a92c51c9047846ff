"""From a guest's error replies and a box's death to the errors of this package. Guest text is cleaned here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from voidbox_lab.errors import BoxLost, Cancelled, LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.machines import Gone
from voidbox_lab.wire import protocol as p

MAX_MESSAGE = 500
_PROVIDER = frozenset({p.INTERNAL, p.IO, p.UNSUPPORTED})
_USER = frozenset(
    {
        p.BAD_REQUEST,
        p.NOT_FOUND,
        p.DENIED,
        p.EXISTS,
        p.NOT_DIRECTORY,
        p.IS_DIRECTORY,
        p.NOT_REGULAR,
        p.NOT_EMPTY,
        p.NOT_EXECUTABLE,
    }
)


def clean(text: object, limit: int = MAX_MESSAGE) -> str:
    """`text` from a guest as one printable line of at most `limit` characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: limit * 2])
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def last_lines(console: str, count: int = 4) -> str:
    """The last lines of a console, cleaned, joined by `` | ``."""
    lines = [clean(line, 160) for line in console.splitlines()]
    return " | ".join([line for line in lines if line][-count:])


def from_guest(op: str, error: Mapping[str, Any]) -> VoidboxError:
    """The typed error for the ``error`` object of a reply to `op`; unknown codes are the provider's fault."""
    code, message = clean(error.get("code"), 40), clean(error.get("message"))
    if code in _USER:
        return UserError(f"{op} in the box: {message}.", cause=code)
    if code == p.NO_SPACE:
        return LimitExceeded(
            f"The box's disk is full ({message}); remove files in it.", limit="disk", source="policy", cause="disk"
        )
    if code == p.TOO_LARGE:
        limit = error.get("limit")
        what = limit if limit in {"files", "bytes"} else "size"
        return LimitExceeded(f"{op} in the box: {message}.", limit=str(what), cause=code)
    if code == p.BUSY:
        return LimitExceeded(f"The box can take no more ({message}); wait for commands to end.", limit="processes")
    if code == p.CANCELLED:
        return Cancelled(f"{op} in the box was cancelled.", cause="cancelled")
    known = code if code in _PROVIDER else "protocol"
    return ProviderError(f"The guest agent could not do {op!r}: {message}.", cause=known)


def libvirt_lost(box: str, why: str) -> BoxLost:
    """`box` ended with the connection to libvirt that it was started over, which is gone because of `why`."""
    return BoxLost(
        f"Box {box} ended because the connection to libvirt was lost ({why}); start the stage again.",
        cause="libvirt-lost",
    )


def lost(box: str, ended: str, gone: Gone | None, *, vsock_died: bool) -> BoxLost:
    """Why `box` is gone.

    Args:
        ended: why the control connection ended, "" if it has not.
        gone: how the machine ended, None if it runs.
        vsock_died: the device process died before its QEMU did.
    """
    said = last_lines(gone.console_tail) if gone else ""
    tail = f"; its console ended with: {said}" if said else ""
    if vsock_died:
        return BoxLost(f"The vsock device process of box {box} died; start the stage again.", cause="vsock-died")
    if gone is None:
        why = clean(ended) or "no reason given"
        return BoxLost(f"The guest agent of box {box} is gone ({why}).", cause="guest-agent-died")
    if gone.reason == "panic":
        # init(1) is our agent: its death is a panic of the kernel, but not the kernel's fault.
        if "Attempted to kill init" in gone.console_tail:
            return BoxLost(f"The guest agent of box {box} was killed{tail}.", cause="guest-agent-died")
        return BoxLost(f"The guest kernel of box {box} panicked{tail}.", cause="guest-panic")
    if gone.reason == "shutdown":
        return BoxLost(f"The guest of box {box} powered itself off{tail}.", cause="guest-agent-died")
    return BoxLost(f"QEMU of box {box} was {gone.reason}{tail}.", cause="qemu-died")


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that tells most: a limit or a lost box before what followed from it."""
    leaves = list(_leaves(group))
    for kind in (LimitExceeded, BoxLost, ProviderError, VoidboxError, Exception):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error

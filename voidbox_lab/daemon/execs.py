"""``POST /v1/exec``: one command in a fresh box, its output streamed, its box closed in any case."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Literal

import anyio

from voidbox_lab.box.folders import Copied, at_first, bring_back, mounted
from voidbox_lab.box.trouble import first_error
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.streams import Sender
from voidbox_lab.engine import Waiting
from voidbox_lab.engine.ports import Box, Exit
from voidbox_lab.engine.stage import CLOSE_S, GRACE_S
from voidbox_lab.errors import Cancelled, LimitExceeded, UserError
from voidbox_lab.spec import Rootfs
from voidbox_lab.spec.api import ExecExit, ExecOutput, ExecRequest, ExecStarted, ExecWaiting, ShellRequest


async def execute(daemon: Daemon, request: ExecRequest, send: Sender) -> None:
    """Run `request`, sending ``waiting`` if there is no room yet, ``started``, ``output`` … and ``exit``.

    Raises:
        Cancelled: the daemon was told to end.
        VoidboxError: what `Admission.admitted` and `Boxes.open` raise.
    """
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end_with, daemon, "command")
            await _execute(daemon, request, send)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def end_with(daemon: Daemon, what: str) -> None:
    """Wait until `daemon` is told to end; then raise `Cancelled`."""
    await daemon.stopping.wait()
    raise Cancelled(f"The daemon was told to end, so the {what} was cancelled; run it again.", cause="shutdown")


@asynccontextmanager
async def fresh_box(
    daemon: Daemon, request: ExecRequest | ShellRequest, what: str, tell: Callable[[ExecWaiting], Awaitable[None]]
) -> AsyncGenerator[Box]:
    """A box as `request` wants it, opened when there is room for it and closed in any case.

    Args:
        what: whose box, for messages: ``The command's box``.
        tell: gets what is waited for, when the wait begins and as it gets on.

    Raises:
        VoidboxError: what `Admission.admitted` and `Boxes.open` raise.
    """

    async def waits(waiting: Waiting) -> None:
        message = f"Waiting for room: {waiting}."
        await tell(ExecWaiting(reason=waiting.reason, ahead=waiting.ahead, message=message))

    async with daemon.admission.admitted(request.memory_mb, request.vcpus, what=what, tell=waits):
        box = await daemon.backend.open(
            memory_mb=request.memory_mb,
            vcpus=request.vcpus,
            rootfs=Rootfs(image=request.image),
            gateway_socket=None,
            policy=at_first(request.policy, request.mounts),
            volumes=request.volumes,
        )
        try:
            yield box
        finally:
            # Shielded: a client that went away must not leave its box behind.
            with anyio.move_on_after(CLOSE_S, shield=True):
                await box.close()


async def _execute(daemon: Daemon, request: ExecRequest, send: Sender) -> None:
    try:
        stdin = base64.b64decode(request.stdin, validate=True) if request.stdin is not None else None
    except binascii.Error:
        raise UserError("stdin is not Base64; encode the bytes (RFC 4648).") from None

    async def tell(waiting: ExecWaiting) -> None:
        await send("waiting", waiting, None)

    async with (
        fresh_box(daemon, request, "The command's box", tell) as box,
        mounted(box, request.mounts, request.policy) as copied,
    ):
        await send("started", ExecStarted(facts=box.facts), None)
        ended = await _run(box, request, stdin, send)
        if ended.code == 0:
            await brought_back(box, copied)
        await send("exit", ended, None)


async def brought_back(box: Box, copied: Sequence[Copied]) -> None:
    """Bring back what was changed in writable folders. Errors as `bring_back`."""
    async with aclosing(bring_back(box, copied, f"voidbox-{box.id}")) as events:
        async for _ in events:
            pass


async def _run(box: Box, request: ExecRequest, stdin: bytes | None, send: Sender) -> ExecExit:
    with anyio.move_on_after(request.timeout_s + GRACE_S) as scope:
        process = await box.start_exec(
            list(request.argv),
            env=request.env,
            cwd=request.cwd,
            stdin=stdin if stdin is not None else False,
            timeout_s=request.timeout_s,
        )
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_copy, process.stdout, "stdout", send)
                tasks.start_soon(_copy, process.stderr, "stderr", send)
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        ended = await process.wait()
    if scope.cancelled_caught:
        raise LimitExceeded(
            f"The command did not end within {request.timeout_s:g} s, and the guest did not end it either.",
            limit="time",
            value=request.timeout_s,
            unit="s",
            source="request",
        )
    return exit_of(ended)


def exit_of(ended: Exit) -> ExecExit:
    """How a process ended, for the client."""
    return ExecExit(
        code=ended.code,
        signal=ended.signal,
        timed_out=ended.timed_out,
        oom=ended.oom,
        duration_s=ended.duration_s,
    )


async def _copy(stream: AsyncIterable[bytes], name: Literal["stdout", "stderr"], send: Sender) -> None:
    async for chunk in stream:
        await send("output", ExecOutput(stream=name, data=base64.b64encode(chunk).decode()), None)

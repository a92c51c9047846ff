"""``/v1/shell``: a WebSocket (RFC 6455) between the user's terminal and a new one in a box.

The client's first message is a `ShellRequest`; then it sends what is typed in binary messages, and `Resize` in
text. The daemon answers with a `ShellEvent` in text, and with what the terminal shows in binary messages. Its last
message is ``exit`` or ``failed``. A slow side is waited for: the program, the client, and whoever types. A client
that hangs up takes with it what it started, and the box if that is its own.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol, cast

import anyio
from anyio.abc import ByteSendStream
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ValidationError

from voidbox_lab.box import Pty
from voidbox_lab.box.folders import Copied, mounted
from voidbox_lab.box.trouble import first_error
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.execs import brought_back, end_with, exit_of, fresh_box
from voidbox_lab.daemon.streams import one_line
from voidbox_lab.engine import ports
from voidbox_lab.errors import Cancelled, LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.spec.api import (
    MAX_SHELL_MESSAGE,
    ExecStarted,
    ExecWaiting,
    Failed,
    Resize,
    ShellAlive,
    ShellRequest,
)
from voidbox_lab.spec.validate import sentence
from voidbox_lab.wire.protocol import AGENT_UID, MAX_PATH

REQUEST_S = 30.0
"""Seconds a client has for its first message."""
ALIVE_S = 10.0
"""Seconds between two signs of life. The second one after a client is gone finds that out."""
LAST_S = 10.0
"""Seconds for the last message to a client."""
TYPED_AHEAD = 16
"""Messages of input kept until the program reads; then the client waits."""
FALLBACK = "/bin/sh"
MAX_PASSWD = 1 << 20

log = logging.getLogger(__name__)


class Terminal(ports.Process, Protocol):
    """A process on a terminal, as `voidbox_lab.box.Process`."""

    @property
    def stdin(self) -> ByteSendStream | None: ...
    async def resize(self, rows: int, cols: int) -> None: ...
    async def kill(self, within_s: float = ...) -> None: ...


class Box(Protocol):
    """What a shell needs of a box, beyond what the engine does; `voidbox_lab.box.Box` has it."""

    async def start_exec(
        self, argv: Sequence[str], *, env: dict[str, str] | None = None, cwd: str = ..., pty: Pty | None = None
    ) -> Terminal: ...
    async def get(self, path: str, *, max_bytes: int = ...) -> bytes: ...


async def serve(daemon: Daemon, socket: WebSocket) -> None:
    """Serve one client to the end. Raises nothing but what cancels it."""
    await socket.accept()
    trouble: VoidboxError | None = None
    try:
        await _serve(daemon, socket)
    except WebSocketDisconnect:
        return
    except VoidboxError as e:
        trouble = e
    except Exception as e:
        log.error("a shell failed", exc_info=e)
        what = f"{type(e).__name__}: {e}"
        trouble = ProviderError(f"The daemon failed ({what}); its log says why.", cause="internal")
    await _end(socket, trouble)


async def _end(socket: WebSocket, trouble: VoidboxError | None) -> None:
    """Say the trouble, if there is any, and good-bye. Nothing happens the second time."""
    # RuntimeError is starlette's word for a socket that has been closed already.
    with suppress(WebSocketDisconnect, RuntimeError), anyio.move_on_after(LAST_S):
        if trouble is not None:
            await _say(socket, Failed(error=trouble.to_dict()))
        await socket.close()


async def _end_with(daemon: Daemon, socket: WebSocket) -> None:
    try:
        await end_with(daemon, "shell")
    except Cancelled as e:
        # At once: by the time the box is closed the server may have cut the connection.
        await _end(socket, e)
        raise


async def _serve(daemon: Daemon, socket: WebSocket) -> None:
    request = await _request(socket)
    line = Line(socket, Pty(request.rows, request.cols))
    mounts = () if request.run is not None else request.mounts  # a stage's box is as it is
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_with, daemon, socket)
            tasks.start_soon(line.listen)
            tasks.start_soon(_stay_alive, socket)
            async with (
                _box(daemon, request, socket) as box,
                mounted(box, mounts, request.policy) as copied,
            ):
                await _run(box, request, line, copied)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _request(socket: WebSocket) -> ShellRequest:
    try:
        with anyio.fail_after(REQUEST_S):
            message = await _receive(socket)
    except TimeoutError:
        raise LimitExceeded(
            f"The client did not say within {REQUEST_S:g} s which shell it wants.",
            limit="time",
            value=REQUEST_S,
            unit="s",
        ) from None
    if isinstance(message, bytes):
        raise UserError("The first message of a shell is its request, as text.")
    try:
        return ShellRequest.model_validate_json(message)
    except ValidationError as e:
        raise UserError(sentence("The shell's request", e)) from e


async def _stay_alive(socket: WebSocket) -> None:
    while True:
        await anyio.sleep(ALIVE_S)
        await _say(socket, ShellAlive())


async def _say(socket: WebSocket, message: BaseModel) -> None:
    await socket.send_text(one_line(message))


async def _receive(socket: WebSocket) -> bytes | str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006), message.get("reason"))
    text = message.get("text")
    return text if text is not None else bytes(message["bytes"])


@asynccontextmanager
async def _box(daemon: Daemon, request: ShellRequest, socket: WebSocket) -> AsyncGenerator[ports.Box]:
    if request.run is not None and request.stage is not None:
        # It closes with its stage.
        yield daemon.runner.box(request.run, request.stage)
        return

    async def tell(waiting: ExecWaiting) -> None:
        await _say(socket, waiting)

    daemon.admission.check("The shell", request.memory_mb)
    async with fresh_box(daemon, request, "The shell's box", tell) as box:
        yield box


class Line:
    """What the client says, for the one terminal that it is about."""

    def __init__(self, socket: WebSocket, size: Pty) -> None:
        self.socket = socket
        self.size = size
        """The client's terminal now."""
        self._resized = anyio.Event()
        self._put, self._typed = anyio.create_memory_object_stream[bytes](TYPED_AHEAD)

    async def listen(self) -> None:
        """Take messages in for ever, waiting while nobody reads what was typed.

        Raises:
            WebSocketDisconnect: the client has hung up.
            UserError: a message is none.
        """
        with self._put:
            while True:
                message = await _receive(self.socket)
                if isinstance(message, bytes):
                    await self._put.send(message)
                    continue
                try:
                    wanted = Resize.model_validate_json(message)
                except ValidationError as e:
                    raise UserError(sentence("A message of the shell's client", e)) from e
                self.size = Pty(wanted.rows, wanted.cols)
                self._resized.set()
                self._resized = anyio.Event()

    async def type_into(self, process: Terminal) -> None:
        """Pass on what is typed until the program has ended."""
        assert process.stdin is not None
        with suppress(anyio.BrokenResourceError):
            async for data in self._typed:
                await process.stdin.send(data)

    async def keep_size(self, process: Terminal, size: Pty) -> None:
        """Let the terminal of `process`, now of `size`, follow the client's, for ever; sizes may be skipped."""
        while True:
            while size != self.size:
                size = self.size
                await process.resize(size.rows, size.cols)
            await self._resized.wait()


async def _run(box: ports.Box, request: ShellRequest, line: Line, copied: Sequence[Copied]) -> None:
    size = line.size
    process = await _start(cast("Box", box), request, size)
    try:
        await _say(line.socket, ExecStarted(facts=box.facts))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(line.type_into, process)
            tasks.start_soon(line.keep_size, process, size)
            async for shown in process.stdout:
                for start in range(0, len(shown), MAX_SHELL_MESSAGE):
                    await line.socket.send_bytes(shown[start : start + MAX_SHELL_MESSAGE])
            ended = exit_of(await process.wait())
            tasks.cancel_scope.cancel()
        await brought_back(box, copied)
        # Before the box is closed: nobody need wait for that.
        await _say(line.socket, ended)
    finally:
        # Of a stage's box only this may go. Bounded and shielded by itself.
        await process.kill()


async def _start(box: Box, request: ShellRequest, size: Pty) -> Terminal:
    env = {"TERM": request.term, **request.env}
    if request.argv:
        return await box.start_exec(list(request.argv), env=env, cwd=request.cwd, pty=size)
    shell = await login_shell(box)
    try:
        return await box.start_exec([shell], env={"SHELL": shell, **env}, cwd=request.cwd, pty=size)
    except UserError as e:
        if e.cause != "not-found" or shell == FALLBACK:
            raise
    return await box.start_exec([FALLBACK], env={"SHELL": FALLBACK, **env}, cwd=request.cwd, pty=size)


async def login_shell(box: Box) -> str:
    """The agent's shell in the box's passwd(5), `FALLBACK` if it names none. What the file says is only tried."""
    try:
        passwd = await box.get("/etc/passwd", max_bytes=MAX_PASSWD)
    except (UserError, LimitExceeded):
        return FALLBACK
    for line in passwd.decode(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[2] == str(AGENT_UID):
            shell = fields[6]
            return shell if shell.startswith("/") and shell.isprintable() and len(shell) < MAX_PATH else FALLBACK
    return FALLBACK

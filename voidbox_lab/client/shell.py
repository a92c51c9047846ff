"""A shell in a box: the client's end of the daemon's ``/v1/shell``. Not for terminals, which are `cli.shell`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
from anyio.to_thread import run_sync
from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from voidbox_lab.client import launch, protocol
from voidbox_lab.client.way import way
from voidbox_lab.errors import ProviderError, UserError, from_dict
from voidbox_lab.settings import Settings
from voidbox_lab.spec.api import (
    MAX_SHELL_MESSAGE,
    SHELL_EVENT,
    ExecExit,
    ExecStarted,
    ExecWaiting,
    Failed,
    Resize,
    ShellAlive,
    ShellRequest,
)

OPEN_S = 10.0
CLOSE_S = 2.0
SILENCE_S = 40.0
"""The daemon says something every 10 s; four missed ones are a dead connection."""


class Shell:
    """An open shell. One task may read it, and any may type."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def events(self) -> AsyncIterator[bytes | ExecWaiting | ExecStarted | ExecExit]:
        """What the terminal shows, in bytes as the box sent them, and what becomes of the shell, last its exit.

        Raises:
            VoidboxError: what the daemon says went wrong, or the connection to it broke.
        """
        while True:
            try:
                with anyio.fail_after(SILENCE_S):
                    message = await self._socket.recv()
            except (ConnectionClosed, TimeoutError) as e:
                raise protocol.lost("showing a shell", e) from e
            if isinstance(message, bytes):
                yield message
                continue
            try:
                event = SHELL_EVENT.validate_json(message)
            except ValidationError as e:
                raise ProviderError("The daemon said of a shell what this client does not know.") from e
            if isinstance(event, Failed):
                raise from_dict(event.error)
            if not isinstance(event, ShellAlive):
                yield event
            if isinstance(event, ExecExit):
                return

    async def type(self, data: bytes) -> None:
        """Send `data` as if typed, waiting while nobody reads it. Nothing happens once the shell has ended."""
        with suppress(ConnectionClosed):
            for start in range(0, len(data), MAX_SHELL_MESSAGE):
                await self._socket.send(data[start : start + MAX_SHELL_MESSAGE])

    async def resize(self, rows: int, cols: int) -> None:
        """Give the terminal another size, in characters. Nothing happens once the shell has ended."""
        with suppress(ConnectionClosed):
            await self._socket.send(Resize(rows=rows, cols=cols).model_dump_json())


@asynccontextmanager
async def open_shell(
    request: ShellRequest, settings: Settings | None = None, *, start: bool = True
) -> AsyncIterator[Shell]:
    """The shell that `request` describes; leaving it hangs up. With `start`, a daemon is started if none runs.

    For asyncio. Raises:
        UserError: the request is too long, or a daemon of another release runs.
        ProviderError: the daemon cannot be started or reached.
    """
    settings = settings or Settings.from_env()
    asked = request.model_dump_json()
    if len(asked.encode()) > MAX_SHELL_MESSAGE:
        raise UserError(
            f"The shell's command and environment have more than {MAX_SHELL_MESSAGE} bytes; put them into a file."
        )
    if start:
        await run_sync(launch.ensure_daemon, settings)
    there = way(settings)
    address = there.base_url.replace("http", "ws", 1) + "/v1/shell"
    try:
        socket = await (connect if there.socket is None else partial(unix_connect, there.socket))(
            address,
            additional_headers={"Authorization": f"Bearer {there.token}"} if there.token else None,
            open_timeout=OPEN_S,
            close_timeout=CLOSE_S,
            max_size=MAX_SHELL_MESSAGE,
            # Nobody between here and there gains by it.
            compression=None,
            proxy=None,
            # The daemon's own signs of life do that; see `ShellAlive`.
            ping_interval=None,
        )
    except (OSError, InvalidHandshake, TimeoutError) as e:
        raise protocol.lost("asking for a shell", e) from e
    try:
        with suppress(ConnectionClosed):  # what is read says why
            await socket.send(asked)
        yield Shell(socket)
    finally:
        with anyio.CancelScope(shield=True):
            await socket.close()

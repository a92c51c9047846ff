"""Bytes between two streams, both ways, with half-closes: what a CONNECT is good for once it is allowed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint_if_cancelled

from voidbox_lab.gateway.egress.account import Account
from voidbox_lab.gateway.egress.client import CHUNK, RESET


async def tunnel(client: ByteStream, server: ByteStream, account: Account, first: bytes) -> None:
    """Carry bytes until both sides have ended, or one is gone.

    Args:
        first: what the client has sent already.
    """
    if first:
        account.sent(len(first))
        await checkpoint_if_cancelled()
        await server.send(first)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_copy, client, server, account.sent, account)
        tasks.start_soon(_copy, server, client, account.received, account)


async def _copy(source: ByteStream, sink: ByteStream, count: Callable[[int], None], account: Account) -> None:
    try:
        while True:
            try:
                data = await source.receive(CHUNK)
            except anyio.EndOfStream:
                with suppress(*RESET):  # it may be gone already, with all that was to be said
                    await sink.send_eof()
                return
            count(len(data))
            await checkpoint_if_cancelled()  # that was one too many
            await sink.send(data)
    except RESET:
        account.end("one side reset the connection")

"""Waiting for the daemon from sync and async code, so that an interrupt takes the run along."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import anyio

from voidbox_lab.client import AsyncClient
from voidbox_lab.errors import Cancelled, VoidboxError
from voidbox_lab.spec import RunRecord, RunSpec

T = TypeVar("T")
CANCEL_S = 5
"""How long an interrupted caller waits for the daemon to take the cancellation of its run."""


async def submitted(client: AsyncClient, spec: RunSpec) -> RunRecord:
    """Begin a run whose inputs were uploaded. Cancelled meanwhile, it takes along a run that the daemon began."""
    answer = asyncio.ensure_future(client.submit(spec))

    async def taken_back() -> None:
        await client.cancel((await answer).id)

    try:
        await asyncio.wait([answer])
    except asyncio.CancelledError:
        with suppress(VoidboxError, TimeoutError):
            await persistently(taken_back(), CANCEL_S)
        raise
    return answer.result()


async def persistently(work: Coroutine[Any, Any, T], within_s: float) -> T:
    """Do what must be done although this task is being cancelled, and may be again: that is not heeded.

    Raises:
        TimeoutError: `work` took longer than `within_s` and was cancelled.
    """

    async def bounded() -> T:
        async with asyncio.timeout(within_s):
            return await work

    task = asyncio.ensure_future(bounded())
    with anyio.CancelScope(
        shield=True
    ):  # anyio's cancellation keeps coming, asyncio's comes once for each request
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
    return task.result()


def blocking(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from sync code: on a loop of its own thread if this thread runs one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _interruptible(start)
    outcome: list[T] = []
    failure: list[BaseException] = []
    running = threading.Event()
    box: dict[str, Any] = {}

    async def main() -> T:
        box["task"], box["loop"] = asyncio.current_task(), asyncio.get_running_loop()
        running.set()
        return await start()

    def work() -> None:
        try:
            outcome.append(asyncio.run(main()))
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=work, name="voidbox-run", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        if running.wait(1):
            box["loop"].call_soon_threadsafe(box["task"].cancel)
        thread.join(15)
        raise Cancelled("The run was cancelled by an interrupt.", cause="interrupted") from None
    if failure:
        raise failure[0]
    return outcome[0]


def _interruptible(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return asyncio.run(start())
    except KeyboardInterrupt:
        # asyncio.run has cancelled the task, which cancelled the run.
        raise Cancelled("The run was cancelled by an interrupt.", cause="interrupted") from None

"""From a claimed box to the first model request leaving it: what a user waits for before a model thinks."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketStream

from voidbox_lab import agents
from voidbox_lab.bench.samples import Figure, Series
from voidbox_lab.bench.stand import Stand
from voidbox_lab.bench.starts import check_start, until_spare
from voidbox_lab.box import Box
from voidbox_lab.errors import LimitExceeded
from voidbox_lab.spec import Model, Rootfs, VoidBoxSpec
from voidbox_lab.wire.protocol import PROXY_PORT

BOUND_S = 180.0
_EVENTS: tuple[dict[str, Any], ...] = (
    {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [], "usage": {}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Done."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + b"".join(
    b"event: " + str(event["type"]).encode() + b"\ndata: " + json.dumps(event).encode() + b"\n\n"
    for event in _EVENTS
)
_HEAD_MAX = 1 << 20


class Answers:
    """Answers model requests on a UNIX socket with one word; says when the first came."""

    def __init__(self) -> None:
        self.asked_at = 0.0
        self.asked = anyio.Event()

    def again(self) -> None:
        """Forget."""
        self.asked = anyio.Event()

    async def serve(self, stream: SocketStream) -> None:
        """One request, one answer."""
        async with stream:
            try:
                head = b""
                while b"\r\n\r\n" not in head and len(head) < _HEAD_MAX:
                    head += await stream.receive()
                if head.startswith(b"POST ") and not self.asked.is_set():
                    self.asked_at = time.monotonic()
                    self.asked.set()
                await stream.send(_ANSWER)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return


async def default_agent(stand: Stand) -> list[Figure]:
    """lab-agent, in claimed spares: its first start in a box is the one that counts."""
    return [await _measure(stand, "lab-agent", stand.memory_mb, stand.samples(10), wanted=0.300)]


async def claude_code(stand: Stand) -> list[Figure]:
    """claude-code, from a layer built on this machine (it is fetched the first time)."""
    return [await _measure(stand, "claude-code", 1024, stand.samples(3))]


async def _measure(stand: Stand, name: str, memory_mb: int, count: int, wanted: float | None = None) -> Figure:
    adapter = agents.adapter(name)
    rootfs = Rootfs(agent=adapter.layer)
    spec = VoidBoxSpec(name="bench", prompt="Say done.", model=Model.parse("scripted:bench"), agent=name)
    launch = adapter.prepare(spec, f"http://127.0.0.1:{PROXY_PORT}", "bench")
    took, floors = [], []
    async with _model(stand.work / "model") as (socket, model), stand.boxes(spares=1) as boxes:
        await (await boxes.open(memory_mb=memory_mb, rootfs=rootfs)).close()
        for _ in range(count):
            await until_spare(boxes)
            model.again()
            began = time.monotonic()
            box = await boxes.open(memory_mb=memory_mb, rootfs=rootfs, gateway_socket=socket)
            try:
                check_start(box, "spare")
                for path, data in launch.files.items():
                    await box.put(data, path)
                async with await box.start_exec(launch.argv, env=launch.env, stdin=launch.stdin) as process:
                    with anyio.move_on_after(BOUND_S):
                        await model.asked.wait()
                    if not model.asked.is_set():
                        raise LimitExceeded(
                            f"{name} asked nothing of its model within {BOUND_S:g} s.",
                            limit="time",
                            value=BOUND_S,
                            unit="s",
                        )
                    took.append(model.asked_at - began)
                    await process.kill()
                floors.append(await _true(box))
            finally:
                await box.close()
    floor = Series("a command in that box", "s", tuple(floors))
    return Figure("agent", Series(f"{name}, claim to first model request", "s", tuple(took)), floor, wanted=wanted)


async def _true(box: Box) -> float:
    began = time.monotonic()
    await box.run(["/bin/true"])
    return time.monotonic() - began


@asynccontextmanager
async def _model(path: Path) -> AsyncIterator[tuple[Path, Answers]]:
    model = Answers()
    listener = await anyio.create_unix_listener(path)
    try:
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, model.serve)
            yield path, model
            tasks.cancel_scope.cancel()
    finally:
        await anyio.Path(path).unlink(missing_ok=True)

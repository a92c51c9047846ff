"""Honest doubles of a box, an adapter and a gateway session: they do in memory what the real ones do in a VM,
and they count what was opened and closed, so that a leak fails a test."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from voidbox_lab import agents
from voidbox_lab.agents import AgentResult, Launch
from voidbox_lab.box.bundles import LeftOut, Packed
from voidbox_lab.engine import Host, StageJob
from voidbox_lab.errors import BoxLost, UserError, VoidboxError
from voidbox_lab.spec import BoxFacts, Policy, VoidBoxSpec
from voidbox_lab.spec.events import AgentText, Body, Denied, Telemetry, ToolCall
from voidbox_lab.wire import bundle

SAMPLE = Telemetry(
    cpu=0.5, load1=0.1, memory_total_kb=500_000, memory_used_kb=1000, disk_total_kb=1, disk_used_kb=0,
    disk_read_bytes=0, disk_write_bytes=0, net_rx_bytes=0, net_tx_bytes=0, processes=3, uptime_s=1,
)  # fmt: skip


@dataclass(frozen=True)
class FakeExit:
    code: int | None = 0
    signal: int | None = None
    timed_out: bool = False
    duration_s: float = 0.0
    oom: bool = False


class FakeProcess:
    """Plays a script of ("out"|"err", bytes), ("denied", Denied), ("sleep", s), ("lose", cause) and
    ("exit", FakeExit)."""

    def __init__(self, script: Sequence[tuple[str, Any]], timeout_s: float) -> None:
        out_send, self.stdout = anyio.create_memory_object_stream[bytes](1000)
        err_send, self.stderr = anyio.create_memory_object_stream[bytes](1000)
        denied_send, self._denied = anyio.create_memory_object_stream[Denied](1000)
        self._sends: dict[str, Any] = {"out": out_send, "err": err_send, "denied": denied_send}
        self._script, self._timeout_s = script, timeout_s
        self.log: list[str] = []

    async def wait(self) -> FakeExit:
        return self._exit

    async def denials(self) -> AsyncIterator[Denied]:
        async for denied in self._denied:
            yield denied

    async def kill(self, within_s: float = 0) -> None:
        self.log.append("processes")

    async def play(self) -> None:
        self._exit = FakeExit()
        with anyio.move_on_after(self._timeout_s) as scope:
            for what, value in self._script:
                if what == "sleep":
                    await anyio.sleep(value)
                elif what == "exit":
                    self._exit = value
                else:
                    await self._sends[what].send(value)
        if scope.cancelled_caught:
            self._exit = FakeExit(code=None, signal=9, timed_out=True)
        for send in self._sends.values():
            send.close()


class FakeBox:
    def __init__(self, boxes: FakeBoxes, memory_mb: int) -> None:
        self.boxes, self.files = boxes, dict[str, bytes]()
        self.name = ""
        self.id = f"vb-{boxes.opened:010x}"
        self.facts = BoxFacts(
            isolation="tcg",
            vsock="user",
            domain=self.id,
            image="sha256:x",
            memory_mb=memory_mb,
            vcpus=1,
            boot_s=0.01,
        )
        self.closed = False

    async def start_exec(self, argv: Sequence[str], *, timeout_s: float, **options: Any) -> FakeProcess:
        self.name = argv[-1]
        script = self.boxes.script(self.name)
        process = FakeProcess([s for s in script if s[0] != "lose"], timeout_s)
        if lost := [value for what, value in script if what == "lose"]:

            async def lose() -> FakeExit:
                raise BoxLost("The box is gone: QEMU was killed.", cause=lost[0])

            process.wait = lose  # type: ignore[method-assign]
        process.log = self.boxes.log
        self.boxes.execs.append((self, argv, options))
        self.boxes.tasks.start_soon(process.play)
        return process

    async def put(self, src: Path | bytes, dst: str, **_: Any) -> None:
        self.files[dst] = src if isinstance(src, bytes) else await anyio.Path(src).read_bytes()

    async def apply(self, policy: Policy) -> None:
        self.policy = policy

    async def unpack(self, path: str, chunks: Iterator[bytes], **_: Any) -> None:
        decoder = bundle.Decoder()
        for chunk in chunks:
            for entry, data, _last in decoder.feed(chunk):
                if entry.kind == bundle.FILE:
                    name = f"{path}/{entry.path.decode()}"
                    self.files[name] = self.files.get(name, b"") + data
        assert decoder.whole

    async def pack(self, path: str, *, left_out: LeftOut, **_: Any) -> AsyncGenerator[Packed, None]:
        for item in self.boxes.leaves.get(self.name, ()):
            if isinstance(item, Exception):
                raise item
            if isinstance(item, float):
                await anyio.sleep(item)
                continue
            if isinstance(item, Packed):
                yield item
            else:
                left_out.add(*item)

    async def mkdir(self, path: str, **_: Any) -> None:
        return

    async def telemetry(self, interval_s: float = 1.0) -> AsyncIterator[Telemetry]:
        while True:
            yield SAMPLE
            await anyio.sleep(interval_s)

    async def undo(self) -> None:
        with anyio.CancelScope(shield=True):
            await self.close()

    async def close(self) -> None:
        await anyio.sleep(0.01)  # closing is never instant; a cancelled stage must still get here and through
        self.closed = True
        self.boxes.log.append("box")
        self.boxes.closed += 1


@dataclass
class FakeBoxes:
    script: Callable[[str], Sequence[tuple[str, Any]]]
    tasks: Any = None
    opened: int = 0
    closed: int = 0
    most: int = 0
    boxes_: list[FakeBox] = field(default_factory=list)
    execs: list[tuple[FakeBox, Sequence[str], dict[str, Any]]] = field(default_factory=list)
    fail: Exception | None = None
    leaves: dict[str, Sequence[Any]] = field(default_factory=dict)
    """By stage, what it leaves in ``/workspace/output``: `Packed`, what is left out, an error, seconds to wait."""
    log: list[str] = field(default_factory=list)
    """What was let go of, in order."""

    async def open(self, *, memory_mb: int, **_: Any) -> FakeBox:
        if self.fail:
            raise self.fail
        self.opened += 1
        box = FakeBox(self, memory_mb)
        self.boxes_.append(box)
        self.most = max(self.most, self.opened - self.closed)
        try:
            await anyio.sleep(0.01)
        except BaseException:
            await box.undo()  # a boot that is cancelled takes down what it had put up, as the real one does
            raise
        return box


class FakeParser:
    """Lines are JSON: {"text": …}, {"tool": …} or {"result": …}."""

    reads_lines = True

    def __init__(self) -> None:
        self._result: str | None = None

    def feed(self, line: bytes) -> list[Body]:
        data = json.loads(line)
        if "text" in data:
            return [AgentText(text=data["text"], block=data.get("block", 0))]
        if "tool" in data:
            return [ToolCall(id="t", name="bash", input={"command": data["tool"]})]
        self._result = data["result"]
        return []

    def finish(self, exit_code: int | None) -> AgentResult:
        return AgentResult(self._result, exit_code != 0)


class FakeAdapter:
    name = "lab-agent"
    layer = None

    def prepare(self, stage: VoidBoxSpec, base_url: str, token: str) -> Launch:
        files = {
            f"/home/agent/.claude/skills/{s.name}/SKILL.md": s.to_markdown().encode() for s in stage.procedures
        }
        return Launch(("agent", stage.prompt, stage.name), {"TOKEN": token, "URL": base_url}, files)

    def parser(self) -> FakeParser:
        return FakeParser()


@dataclass(frozen=True)
class FakeSession:
    token: str
    base_url: str = "http://127.0.0.1:8129"
    socket: Path | None = None
    upstream: VoidboxError | None = None
    log: list[str] = field(default_factory=list)

    def trouble(self) -> VoidboxError | None:
        return self.upstream

    async def close(self) -> None:
        self.log.append("model")


class FakeSessions:
    """Registered and revoked tokens."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.count = 0
        self.upstream: VoidboxError | None = None
        self.log: list[str] = []
        self.jobs: dict[str, StageJob] = {}

    @asynccontextmanager
    async def __call__(self, job: StageJob) -> AsyncIterator[FakeSession]:
        self.count += 1
        token = f"token-{job.run}-{job.box.name}"
        assert token not in self.live
        self.live.add(token)
        self.jobs[job.box.name] = job
        try:
            yield FakeSession(token, upstream=self.upstream, log=self.log)
        finally:
            self.live.remove(token)


def adapter(name: str) -> Any:
    if name == "command":
        return agents.adapter(name)
    if name != "lab-agent":
        raise UserError(f"There is no agent {name!r}; known: lab-agent.")
    return FakeAdapter()


def host(boxes: FakeBoxes, sessions: FakeSessions) -> Host:
    return Host(boxes=boxes, adapter=adapter, session=sessions)


def says(*texts: str, result: str = "done") -> list[tuple[str, Any]]:
    lines = [json.dumps({"text": t}) for t in texts] + [json.dumps({"result": result})]
    return [("out", f"{line}\n".encode()) for line in lines]

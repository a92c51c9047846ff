"""A stand-in for `voidbox_lab.client.AsyncClient` that replays written-down events, in this process.

No daemon, no box, no model: what it "answers" says so. The scenario is chosen by the stage's model name.
`install()` puts it in the client's place; tests and the kernels that tests start call it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec.digest import digest_bytes
from voidbox_lab.spec.events import (
    AgentLog,
    AgentText,
    Body,
    BoxBooted,
    Denied,
    Egress,
    Event,
    FileKept,
    ModelCall,
    Mounted,
    Notice,
    RunChanged,
    StageChanged,
    Telemetry,
    ToolCall,
    ToolResult,
)
from voidbox_lab.spec.run import BoxFacts, InputFile, RunRecord, RunSpec, Stage, StageRecord, Tokens, Trouble

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "\x1b]0;owned\x07\x1b[31mred"
)
ANSWER = """\
**AAPL** did best. This is a replayed answer (`replay.py`): no model was asked.

| symbol | mean return | volatility | ratio |
|--------|-------------|------------|-------|
| AAPL   |      0.0287 |     0.1092 | 0.263 |
| IBM    |      0.0054 |     0.0709 | 0.076 |

AAPL had the best risk-adjusted return."""
SCRIPT = """\
python3 - <<'EOF'
import csv, statistics
rows = list(csv.DictReader(open('/workspace/input/stocks.csv')))
print(len(rows))
EOF"""

Step = tuple[float, Body]


def telemetry(i: int) -> Telemetry:
    """A plausible sample; `i` makes it vary."""
    return Telemetry(
        cpu=0.5 + 0.45 * math.sin(i / 2), load1=0.4, memory_total_kb=490_000,
        memory_used_kb=110_000 + 9_000 * (i % 13), disk_total_kb=1_000_000, disk_used_kb=20_000 + i,
        disk_read_bytes=1_000_000, disk_write_bytes=10_000 * i, net_rx_bytes=0, net_tx_bytes=0,
        processes=12, uptime_s=6.0 + i,
    )  # fmt: skip


def call(n: int, cost: float | None = 0.0, source: str = "scripted") -> ModelCall:
    """A metered model call."""
    return ModelCall(
        request=f"r{n}", model="replay", source=source, status=200,  # type: ignore[arg-type]
        tokens=Tokens(input=812 + n, output=96), cost_usd=cost, duration_s=0.4, first_byte_s=0.1,
    )  # fmt: skip


def words(text: str, delay: float, block: int) -> Iterator[Step]:
    """`text` word by word, as an agent streams it."""
    for word in text.split(" "):
        yield delay, AgentText(text=word + " ", block=block)


def boot(delay: float) -> Iterator[Step]:
    """From queued to running."""
    yield delay, StageChanged(state="booting")
    facts = BoxFacts(
        isolation="tcg", vsock="user", domain="vb-0000000000", image="sha256:" + "0" * 64,
        memory_mb=512, vcpus=1, boot_s=6.1,
    )  # fmt: skip
    yield 4 * delay, BoxBooted(facts=facts)
    yield delay, StageChanged(state="provisioning")
    yield delay, StageChanged(state="running")


def deeds() -> Iterator[Step]:
    """What a stage may do besides talking: folders, connections, refusals, files."""
    folder = {"mount": "/srv/data:/data:ro", "how": "copy", "digest": "sha256:" + "0" * 64}
    yield 0, Mounted(direction="in", files=12, bytes=34_567, **folder)
    yield 0, ToolCall(id="t1", name="bash", input={"command": "curl https://pypi.org/simple/"})
    message = "nc is not among the programs that this stage may execute; add it to the policy's commands."
    yield 0, Denied(rule="commands", subject="/usr/bin/nc", message=message, program="bash")
    yield 0, Denied(rule="commands", subject="/usr/bin/nc", message=message, program="bash", count=3)
    yield 0, Denied(rule="syscalls.ptrace", subject="ptrace", message="ptrace is denied.", program="gdb")
    pypi = {"host": "pypi.org", "port": 443, "rule": "pypi.org:443", "address": "151.101.0.223"}
    yield 0, Egress(verdict="allowed", bytes_out=1200, bytes_in=2_345_678, duration_s=1.25, **pypi)
    reason = "example.org:80 is not in this stage's egress allowlist; add it to the policy's egress"
    yield 0, Egress(host="example.org", port=80, verdict="denied", rule="allowlist", reason=reason)
    yield 2, ToolResult(id="t1", content="ok")
    yield 0, call(1)
    for path, count in (("report.md", 2048), ("tables/returns.parquet", 1_234_567)):
        yield 0, FileKept(path=path, file=InputFile(digest="sha256:" + "1" * 64, size=count))
    yield 0, StageChanged(state="collecting")
    yield 0, StageChanged(state="succeeded", output="Done.")


def long() -> Iterator[Step]:
    """A stage that says and logs more than a view keeps, and goes on."""
    for i in range(200):
        yield 0, AgentText(text=f"step {i}", block=i)
    for i in range(400):
        yield 0, AgentLog(text=f"line {i} of a log")
    yield 200, AgentText(text="late", block=999)


FLOOD_MB = 100


def flood() -> Iterator[Step]:
    """A hostile agent's output, as fast as it is taken."""
    piece = (HOSTILE + "\r\n\x1b[2J[x](javascript:alert(1)) ![p](http://127.0.0.1:9/p.png) **`|a|`** ") * 400
    piece = piece[:65_000]
    for i in range(FLOOD_MB * 1_000_000 // len(piece)):
        yield 0, AgentText(text=piece, block=i // 100) if i % 50 < 40 else AgentLog(text=piece)
        if i % 20 == 0:
            yield 0.001, telemetry(i)
    yield 0, StageChanged(state="succeeded", output=HOSTILE * 1000)


def scenario(name: str) -> Iterator[Step]:
    """The steps of one stage, with the seconds before each."""
    if name in {"long", "flood"}:
        yield from boot(0.02)
        yield from long() if name == "long" else flood()
        return
    if name == "endless":
        yield from boot(0.05)
        for i in range(100_000):
            yield 0.03, AgentText(text=f"word{i} ", block=i // 40)
            if i % 10 == 0:
                yield 0, telemetry(i // 10)
        return
    slow = 0.06 if name == "slow" else 0.0
    yield from boot(2 * slow)
    if name == "fails":
        yield 0, AgentLog(text="agent: cannot go on", stream="stderr")
        trouble = Trouble(kind="limit", message="The agent was still running after 300 s.", cause="time")
        yield 0, StageChanged(state="failed", trouble=trouble)
        return
    if name == "deeds":
        yield from deeds()
        return
    said = (
        HOSTILE
        if name == "hostile"
        else "I will look at the columns of the table first, then compute monthly returns for each stock."
    )
    for i in range(12):
        yield slow / 2, telemetry(i)
    yield from words(said, slow, 0)
    yield slow, call(1)
    command = (
        HOSTILE
        if name == "hostile"
        else "head -3 /workspace/input/stocks.csv && wc -l /workspace/input/stocks.csv"
    )
    yield slow, ToolCall(id="t1", name="bash", input={"command": command})
    yield 8 * slow, telemetry(13)
    result = (
        HOSTILE if name == "hostile" else "symbol,date,price\nMSFT,Jan 1 2000,39.81\nMSFT,Feb 1 2000,36.35\n561"
    )
    yield slow, ToolResult(id="t1", content=result)
    yield from words("The prices are month ends. Now the returns: mean over volatility, per symbol.", slow, 1)
    yield slow, call(2)
    yield slow, ToolCall(id="t2", name="bash", input={"command": SCRIPT})
    for i in range(14, 30):
        yield slow, telemetry(i)
    yield 10 * slow, ToolResult(id="t2", content="ModuleNotFoundError: No module named 'pandas'", is_error=True)
    yield slow, Notice(level="warning", message="The tool's output was cut to 64 kB.")
    yield slow, ToolCall(id="t3", name="read", input={"path": "/workspace/input/stocks.csv", "limit": 20})
    yield 40 * slow, ToolResult(id="t3", content="symbol,date,price\n" * 20)
    yield slow, call(3)
    yield slow, StageChanged(state="collecting")
    yield slow, StageChanged(state="succeeded", output=HOSTILE if name == "hostile" else ANSWER)


class _Run:
    def __init__(self, run_id: str, spec: RunSpec) -> None:
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        stages = {s.box.name: StageRecord(name=s.box.name, model=str(s.box.model)) for s in spec.stages}
        self.record = RunRecord(id=run_id, spec=spec, created_at=time.time(), stages=stages)
        self.task = asyncio.ensure_future(self._play())

    def _say(self, body: Body, stage: str | None = None) -> None:
        now = time.time()
        self.events.append(Event(seq=len(self.events) + 1, run=self.record.id, at=now, stage=stage, body=body))
        over = body.type in {"run", "stage"} and body.state in {"succeeded", "failed", "cancelled", "skipped"}
        if isinstance(body, RunChanged):
            self.record = self.record.model_copy(
                update={"state": body.state, "finished_at": now if over else None}
            )
        elif stage is not None:
            old = self.record.stages[stage]
            new: dict[str, Any] = {}
            if isinstance(body, StageChanged):
                new = {"state": body.state, "output": body.output, "trouble": body.trouble}
                new |= {"finished_at": now} if over else {"started_at": old.started_at or now}
            elif isinstance(body, BoxBooted):
                new = {"box": body.facts}
            elif isinstance(body, ModelCall):
                new = {
                    "tokens": old.tokens + body.tokens,
                    "turns": old.turns + 1,
                    "cost_usd": 0.0,
                    "model_source": body.source,
                }
            elif isinstance(body, Denied):
                new = {"denied": old.denied + body.count}
            elif isinstance(body, Egress):
                out, back = old.bytes_out + body.bytes_out, old.bytes_in + body.bytes_in
                new = {"connections": old.connections + 1, "bytes_out": out, "bytes_in": back}
            elif isinstance(body, ToolCall):
                new = {"tool_calls": old.tool_calls + 1}
            self.record = self.record.model_copy(
                update={"stages": self.record.stages | {stage: old.model_copy(update=new)}}
            )
        self.changed.set()
        self.changed = asyncio.Event()

    async def _stage(self, name: str, model: str) -> None:
        for delay, body in scenario(model):
            if delay:
                await asyncio.sleep(delay)
            self._say(body, name)

    async def _stages(self) -> None:
        """Each after those that it needs."""
        done = {s.box.name: asyncio.Event() for s in self.record.spec.stages}

        async def one(stage: Stage) -> None:
            for need in stage.needs:
                await done[need].wait()
            await self._stage(stage.box.name, stage.box.model.name)
            done[stage.box.name].set()

        await asyncio.gather(*(one(s) for s in self.record.spec.stages))

    async def _play(self) -> None:
        self._say(RunChanged(state="running"))
        try:
            await self._stages()
        except asyncio.CancelledError:
            trouble = Trouble(kind="cancelled", message="Cancelled by the user.")
            for name, stage in self.record.stages.items():
                if stage.finished_at is None:
                    self._say(StageChanged(state="cancelled", trouble=trouble), name)
            self._say(RunChanged(state="cancelled", trouble=trouble))
            return
        bad = any(s.state == "failed" for s in self.record.stages.values())
        self._say(RunChanged(state="failed" if bad else "succeeded"))


RUNS: dict[str, _Run] = {}


class ReplayClient:
    """The part of the asynchronous client that the notebook uses."""

    def __init__(self) -> None:
        self.settings = Settings.from_env()

    async def __aenter__(self) -> ReplayClient:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        return None

    async def upload(self, source: Path | bytes) -> InputFile:
        data = source if isinstance(source, bytes) else source.read_bytes()
        return InputFile(digest=digest_bytes(data), size=len(data))

    async def submit(self, spec: RunSpec) -> RunRecord:
        run_id = f"replay-{len(RUNS) + 1}"
        RUNS[run_id] = _Run(run_id, spec)
        return RUNS[run_id].record

    async def events(self, run_id: str, after: int = 0, *, follow: bool = True) -> AsyncIterator[Event]:
        run = RUNS[run_id]
        while True:
            changed = run.changed
            for event in run.events[after:]:
                after = event.seq
                yield event
            over = run.record.state in {"succeeded", "failed", "cancelled"}
            if not follow or (over and after == len(run.events)):
                return
            await changed.wait()

    async def cancel(self, run_id: str) -> None:
        await self.run(run_id)
        RUNS[run_id].task.cancel()

    async def pause(self, run_id: str) -> None:
        RUNS[run_id]._say(RunChanged(state="paused"))

    async def resume(self, run_id: str) -> None:
        RUNS[run_id]._say(RunChanged(state="running"))

    async def run(self, run_id: str) -> RunRecord:
        if run_id not in RUNS:
            raise UserError(f"There is no run {run_id!r}; '%voidbox runs' lists them.")
        return RUNS[run_id].record

    async def runs(self, limit: int = 20) -> list[RunRecord]:
        return [r.record for r in reversed(RUNS.values())][:limit]


def install() -> None:
    """Put `ReplayClient` in the place of the real client, in this process."""
    from voidbox_lab.magics import commands

    commands.AsyncClient = ReplayClient  # type: ignore[misc,assignment]

"""Events of runs, told one after the other with their times."""

from __future__ import annotations

from typing import Any

from voidbox_lab.spec import BoxFacts, Model, RunRecord, RunSpec, Stage, Tokens, Trouble, VoidBoxSpec
from voidbox_lab.spec.events import (
    Body,
    BoxBooted,
    Event,
    ModelCall,
    RunChanged,
    StageChanged,
    Telemetry,
    ToolCall,
    ToolResult,
)
from voidbox_lab.store.fold import rebuild

FACTS = BoxFacts(
    isolation="tcg",
    vsock="user",
    domain="vb-1",
    image="sha256:i",
    memory_mb=512,
    vcpus=1,
    boot_s=0.4,
    start="clone",
)
MODEL = Model.parse("anthropic:claude-x")


class Told:
    """A run of `stages`, created at 1000.0."""

    def __init__(self, *stages: Stage, name: str | None = None) -> None:
        self.spec = RunSpec(name=name, stages=stages or (agent("a"),))
        self.events: list[Event] = []

    def tell(self, at: float, body: Body, stage: str | None = "a") -> None:
        """At 1000 and `at` seconds."""
        self.events.append(Event(seq=len(self.events) + 1, run="run-1", at=1000 + at, stage=stage, body=body))

    def stage(self, at: float, state: Any, stage: str = "a", **more: Any) -> None:
        self.tell(at, StageChanged(state=state, **more), stage)

    def run(self, at: float, state: Any, trouble: Trouble | None = None) -> None:
        self.tell(at, RunChanged(state=state, trouble=trouble), None)

    def until_running(self, at: float = 0.0, stage: str = "a", attempt: int = 1) -> None:
        """Queued for 1 s, booted in 2 s, provisioned in 1 s."""
        self.stage(at, "queued", stage, attempt=attempt)
        self.stage(at + 1, "booting", stage)
        self.tell(at + 3, BoxBooted(facts=FACTS), stage)
        self.stage(at + 3, "provisioning", stage)
        self.stage(at + 4, "running", stage)

    def call(self, at: float, seconds: float = 1.0, stage: str = "a", **more: Any) -> None:
        """A model call that ends then: 10 tokens in, 5 out, 2 read from a cache, a cent."""
        tokens = Tokens(input=10, output=5, cache_read=2)
        given: dict[str, Any] = {"status": 200, "source": "live", "tokens": tokens, "cost_usd": 0.01}
        given |= {"request": f"req-{len(self.events)}", "model": "claude-x", "duration_s": seconds} | more
        self.tell(at, ModelCall(**given), stage)

    def tool(self, at: float, id_: str = "t1", name: str = "Bash", stage: str = "a", **given: Any) -> None:
        self.tell(at, ToolCall(id=id_, name=name, input=given or {"command": "secret"}), stage)

    def result(self, at: float, id_: str = "t1", *, error: bool = False, stage: str = "a") -> None:
        self.tell(at, ToolResult(id=id_, content="secret result", is_error=error), stage)

    def sample(self, at: float, stage: str = "a", cpu: float = 0.5) -> None:
        nothing = dict.fromkeys(
            (
                "disk_total_kb",
                "disk_used_kb",
                "disk_read_bytes",
                "disk_write_bytes",
                "net_rx_bytes",
                "net_tx_bytes",
            ),
            0,
        )
        body = Telemetry(
            cpu=cpu, load1=0, memory_total_kb=9, memory_used_kb=4, processes=1, uptime_s=1, **nothing
        )  # fmt: skip
        self.tell(at, body, stage)

    @property
    def record(self) -> RunRecord:
        return rebuild("run-1", self.spec, self.events, at=1000.0)


def agent(name: str, *needs: str) -> Stage:
    return Stage(box=VoidBoxSpec(name=name, prompt="the prompt", model=MODEL), needs=needs)


def command(name: str, *argv: str) -> Stage:
    return Stage(box=VoidBoxSpec(name=name, command=argv))


def conversation() -> Told:
    """A run of one agent: it asks, calls two tools, of which the second fails, asks again, and answers."""
    told = Told(agent("a"), name="demo")
    told.run(0.0, "running")
    told.until_running()
    told.call(6.0, 2.0)
    told.tool(6.5, "t1")
    told.tool(6.6, "t2", "mcp__clock__now")
    told.sample(7.0)
    told.result(8.0, "t1")
    told.result(8.5, "t2", error=True)
    told.call(10.0, 1.0)
    told.stage(11.0, "collecting")
    told.stage(12.0, "succeeded", output="the answer")
    told.run(12.5, "succeeded")
    return told

"""Stored runs for the dashboards: made up, exact, put into a store without a daemon.

``python -m tests.widgets.dashboards.samples N`` fills the store of `VOIDBOX_HOME` with N of them.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

import anyio

from voidbox_lab.settings import Settings
from voidbox_lab.spec import Model, RunSpec, Skill, Stage, VoidBoxSpec
from voidbox_lab.spec.events import (
    BoxBooted,
    ModelCall,
    RunChanged,
    StageChanged,
    Telemetry,
    TopProcess,
)
from voidbox_lab.spec.run import BoxFacts, Tokens, Trouble
from voidbox_lab.store import Entry
from voidbox_lab.store.opening import open_store

MODELS = ("anthropic:claude-sonnet-4-5", "anthropic:claude-haiku-4-5", "openai:gpt-5-mini", "scripted:quickstart")
PRICE = {MODELS[0]: 9e-6, MODELS[1]: 3e-6, MODELS[2]: 1e-6, MODELS[3]: 0.0}
"""Dollars for a token of these runs."""
SKILLS = ("price-history", "sentiment-lexicon", "risk-rules")
NAMES = ("trading", "nightly-report", None, "triage")
STAGES = ("data", "quant", "strategist")
DAY = 86400.0


def spec(number: int) -> RunSpec:
    """A pipeline of three stages; its models and skills go round with `number`."""
    boxes = [
        VoidBoxSpec(
            name=name,
            prompt=f"Part {place} of the question, asked for the {number % 7}th time.",
            model=Model.parse(MODELS[(number + place) % len(MODELS)]),
            skills=tuple(
                Skill(name=skill, description="how to", body="Read it.")
                for skill in SKILLS[: (number + place) % 3]
            ),
            memory_mb=512 if number % 5 else 1024,
        )
        for place, name in enumerate(STAGES)
    ]
    stages = tuple(
        Stage(box=box, needs=tuple(b.name for b in boxes[max(0, i - 1) : i])) for i, box in enumerate(boxes)
    )
    return RunSpec(stages=stages, name=NAMES[number % len(NAMES)])


def entries(
    number: int, of: RunSpec, at: float, *, state: str = "succeeded", samples: int = 12
) -> Iterator[Entry]:
    """The events of such a run, begun `at`; two model calls and `samples` samples of telemetry in each stage."""
    yield Entry(RunChanged(state="running"), None, at)
    facts = BoxFacts(
        isolation="tcg" if number % 3 else "kvm", vsock="user", domain="vb-sample", image="sha256:" + "0" * 64,
        memory_mb=512, vcpus=1, boot_s=0.7, start="clone",
    )  # fmt: skip
    for place, stage in enumerate(of.stages):
        name, model = stage.box.name, stage.box.model
        assert model is not None
        yield Entry(StageChanged(state="running", attempt=1), name, at)
        yield Entry(BoxBooted(facts=facts), name, at + 0.7)
        for sample in range(samples):
            yield Entry(telemetry(sample, place), name, at + 1 + sample)
        for call in range(2):
            tokens = Tokens(input=1000 * (place + 1), output=200 + 50 * call, cache_read=300 * call)
            body = ModelCall(
                request=f"req-{number}-{place}-{call}", model=model.name, status=200, tokens=tokens,
                source="scripted" if model.provider == "scripted" else "live",
                cost_usd=tokens.total * PRICE[str(model)], duration_s=1.5, first_byte_s=0.4,
            )  # fmt: skip
            yield Entry(body, name, at + 2 + call)
        at += 1 + samples
        if place == len(of.stages) - 1 and state == "running":
            return
        if place == 1 and state == "failed":
            trouble = Trouble(kind="command", message="<b>The agent</b> exited with status 1.", exit_code=1)
            yield Entry(StageChanged(state="failed", trouble=trouble), name, at)
            yield Entry(StageChanged(state="skipped"), of.stages[2].box.name, at)
            yield Entry(RunChanged(state="failed", trouble=trouble), None, at)
            return
        yield Entry(StageChanged(state="succeeded", output=f"answer {number}"), name, at)
    yield Entry(RunChanged(state="succeeded"), None, at)


def telemetry(sample: int, place: int = 0) -> Telemetry:
    """The sample taken `sample` seconds after the first."""
    return Telemetry(
        cpu=0.5 + 0.4 * math.sin(sample / 3 + place), load1=0.5, memory_total_kb=512 << 10,
        memory_used_kb=(120 << 10) + sample * 2048, disk_total_kb=1 << 20, disk_used_kb=4096 + 100 * sample,
        disk_read_bytes=(sample << 19), disk_write_bytes=(sample << 18), net_rx_bytes=2048 * sample,
        net_tx_bytes=1024 * sample, processes=20 + sample % 4, uptime_s=3.0 + sample,
        top=(TopProcess(pid=77, name="python3", cpu=0.5, rss_kb=40 << 10),),
    )  # fmt: skip


def state_of(number: int) -> str:
    """One run in nine failed."""
    return "failed" if number % 9 == 4 else "succeeded"


def fill(settings: Settings, runs: Iterable[tuple[str, RunSpec, float, Sequence[Entry]]]) -> None:
    """Put runs (id, spec, time of creation, events) into the store of `settings`, which no daemon has open."""

    async def write() -> None:
        store = await open_store("sqlite", settings.data)
        for run, of, at, events in runs:
            await store.create_run(run, of, at=at)
            await store.append(run, events)
        await store.aclose()

    anyio.run(write)


def month(count: int, until: float, days: float = 28.0) -> Iterator[tuple[str, RunSpec, float, list[Entry]]]:
    """`count` runs spread over so many days before `until`, the oldest first, more by day than at night."""
    for number in range(count):
        even = (number + 0.5) / count * days
        at = until - DAY * (days - even + 0.12 * math.sin(2 * math.pi * even)) - 120
        of = spec(number)
        yield f"run-{number:012x}", of, at, list(entries(number, of, at, state=state_of(number)))


if __name__ == "__main__":
    fill(Settings.from_env().prepare(), month(int(sys.argv[1]), time.time()))

"""The whole house with real boxes: runs, and the bad days. Nothing may be left behind."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab import images
from voidbox_lab.client import Client
from voidbox_lab.settings import Settings
from voidbox_lab.spec import InputFile, Model, RunRecord, RunSpec, Stage, Trouble, VoidBoxSpec
from voidbox_lab.spec.api import CheckReport, ExecExit, ExecOutput, ExecRequest, ExecStarted
from voidbox_lab.spec.events import BoxBooted, Event, ModelCall, StageChanged, Telemetry, ToolResult

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


SCRIPTS = {
    # Takes all memory until the kernel ends it, then takes the agent along: lab-agent's own score is not its
    # tools' to raise, for it is no process that they may look into.
    "hog": """
description: Uses up the box's memory.
turns:
  - say: I take it all.
    use:
      - shell: |
          python3 -c '[b"x" * (1 << 20) for _ in range(2000)]'
          kill -9 $PPID
  - say: Still here.
""",
    "suicide": """
description: Kills its own agent.
turns:
  - say: Good-bye.
    use:
      - shell: kill -9 $PPID
  - say: Still here.
""",
}
"""Scripted models of this module."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home of this module's own over the shared cache, with the image built."""
    cache = Settings.from_env().cache
    root = tmp_path_factory.mktemp("house")
    scripts = root / "scripts"
    scripts.mkdir()
    for name, text in SCRIPTS.items():
        (scripts / f"{name}.yaml").write_text(text)
    # The daemon reads it from the environment it is started with.
    patch = pytest.MonkeyPatch()
    patch.setenv("VOIDBOX_SCRIPTS", str(scripts))
    settings = Settings.from_env({**os.environ, "VOIDBOX_HOME": str(root), "VOIDBOX_CACHE": str(cache)}).prepare()
    images.build(settings)
    yield settings
    patch.undo()
    shutil.rmtree(settings.runtime)


@pytest.fixture(scope="module")
def client(home: Settings) -> Iterator[Client]:
    """A client of a real daemon process; at the end the daemon leaves and nothing of it remains."""
    with Client(home) as client:
        yield client
        client._connect()  # a test may have killed the first daemon
        pid = client.health().pid
        client.shutdown()
    until(lambda: not Path(f"/proc/{pid}").exists() or zombie(pid), 60)
    assert left(home) == []


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def left(home: Settings) -> list[str]:
    """Processes that name this home or its boxes, and box directories."""
    found = [str(p) for p in (home.runtime / "b").glob("*")]
    marks = (str(home.runtime), str(home.data))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue
            if any(mark in text for mark in marks):
                found.append(f"{entry.name}: {text[:100]}")
    return found


def until(true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def qemu_of(domain: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"guest={domain}," in text:
                return int(entry.name)
    raise AssertionError(f"no QEMU runs {domain}")


def stage(name: str, model: str = "scripted:quickstart", **options: Any) -> Stage:
    return Stage(box=VoidBoxSpec(name=name, prompt="Use stocks.csv.", model=Model.parse(model), **options))


@pytest.fixture(scope="module")
def stocks(client: Client) -> InputFile:
    from vega_datasets import data

    return client.upload(data.stocks.filepath)


def test_quickstart_end_to_end(client: Client, stocks: InputFile) -> None:
    """A scripted model, a real box: the numbers come from code that ran in it, and agree with ours."""
    from vega_datasets import data

    record = client.submit(RunSpec(fresh=True, stages=(stage("analyst"),), inputs={"stocks.csv": stocks}))
    events = list(client.events(record.id))
    final = client.run(record.id)
    assert final.state == "succeeded", final.trouble
    done = final.stages["analyst"]
    assert done.box is not None
    assert done.box.isolation in {"kvm", "tcg"}
    assert (done.model_source, done.cost_usd) == ("scripted", 0.0)
    assert done.turns >= 2
    assert done.tokens.output > 0
    kinds = {type(e.body) for e in events}
    assert {BoxBooted, ModelCall, ToolResult, Telemetry, StageChanged} <= kinds
    prices: dict[str, list[float]] = {}
    for row in csv.DictReader(io.StringIO(Path(data.stocks.filepath).read_text())):
        prices.setdefault(row["symbol"], []).append(float(row["price"]))
    returns = {s: [b / a - 1 for a, b in itertools.pairwise(p)] for s, p in prices.items()}
    best = max(returns, key=lambda s: statistics.mean(returns[s]) / statistics.stdev(returns[s]))
    assert done.output is not None
    assert best in done.output.split("\n")[0]


def test_exec(client: Client) -> None:
    stdin = base64.b64encode(b"hello\n").decode()
    request = ExecRequest(argv=("sh", "-c", "cat; echo oops >&2; id -u; exit 3"), stdin=stdin, memory_mb=256)
    events = list(client.execute(request))
    assert isinstance(events[0], ExecStarted)
    output = {"stdout": b"", "stderr": b""}
    for event in events:
        if isinstance(event, ExecOutput):
            output[event.stream] += base64.b64decode(event.data)
    assert output == {"stdout": b"hello\n1000\n", "stderr": b"oops\n"}
    assert isinstance(events[-1], ExecExit)
    assert events[-1].code == 3


def test_exec_past_its_time(client: Client) -> None:
    events = list(client.execute(ExecRequest(argv=("sleep", "60"), timeout_s=1, memory_mb=256)))
    assert isinstance(events[-1], ExecExit)
    assert events[-1].timed_out


def test_check(client: Client) -> None:
    report = list(client.check())[-1]
    assert isinstance(report, CheckReport)
    assert report.ok, [s for s in report.steps if s.state == "failed"]
    steps = {s.name: s for s in report.steps}
    assert 0 <= steps["boot"].data["boot_s"] < 180  # next to nothing where a spare was ready
    assert 0 < steps["exec"].data["median_s"] < 30


def at_work(client: Client, run: str) -> tuple[str, list[Event]]:
    """Wait until the agent of the run's one stage is at work; its box, and the events so far."""
    seen, domain = [], None
    for event in client.events(run):
        seen.append(event)
        if isinstance(event.body, BoxBooted):
            domain = event.body.facts.domain
        if isinstance(event.body, Telemetry) and domain is not None:
            return domain, seen
    raise AssertionError(f"the run ended before its agent began: {client.run(run).trouble}")


def ended(client: Client, run: str) -> RunRecord:
    for _ in client.events(run):
        pass
    return client.run(run)


def test_cancel_in_the_middle(client: Client, stocks: InputFile) -> None:
    record = client.submit(RunSpec(fresh=True, stages=(stage("analyst"),), inputs={"stocks.csv": stocks}))
    domain, _ = at_work(client, record.id)
    client.cancel(record.id)
    final = ended(client, record.id)
    assert (final.state, final.stages["analyst"].state) == ("cancelled", "cancelled")
    with pytest.raises(AssertionError, match="no QEMU"):
        qemu_of(domain)


def test_an_agent_past_its_time(client: Client, stocks: InputFile) -> None:
    record = client.submit(
        RunSpec(fresh=True, stages=(stage("analyst", timeout_s=0.5),), inputs={"stocks.csv": stocks})
    )
    trouble = ended(client, record.id).stages["analyst"].trouble
    assert trouble is not None
    assert (trouble.kind, trouble.cause) == ("limit", "time")


def trouble_of(client: Client, *stages: Stage) -> Trouble:
    record = client.submit(RunSpec(fresh=True, stages=stages))
    trouble = ended(client, record.id).trouble
    assert trouble is not None, client.run(record.id)
    return trouble


def test_a_box_out_of_memory(client: Client) -> None:
    trouble = trouble_of(client, stage("hog", "scripted:hog", memory_mb=256))
    assert (trouble.kind, trouble.cause) == ("limit", "memory"), trouble
    assert "256 MiB" in trouble.message


def test_an_agent_that_dies(client: Client) -> None:
    trouble = trouble_of(client, stage("dies", "scripted:suicide"))
    assert (trouble.kind, trouble.cause) == ("command", "agent-failed"), trouble
    assert "signal 9" in trouble.message


def test_a_model_that_is_down(client: Client) -> None:
    """The agent fails for want of its model: the provider's trouble, said as such."""
    trouble = trouble_of(client, stage("down", "scripted:down", timeout_s=120))
    assert trouble.kind == "provider", trouble


def test_a_later_stage_reads_the_earlier_ones_answer(client: Client) -> None:
    second = Stage(box=stage("second", "scripted:echo").box, needs=("first",))
    record = client.submit(RunSpec(fresh=True, stages=(stage("first", "scripted:echo"), second)))
    final = ended(client, record.id)
    assert final.state == "succeeded", final.trouble
    assert final.result is not None
    assert "/workspace/input/first.md" in final.result


def test_qemu_killed(client: Client, stocks: InputFile) -> None:
    """The stage fails as lost; its sibling lives."""
    spec = RunSpec(fresh=True, stages=(stage("victim"), stage("sibling")), inputs={"stocks.csv": stocks})
    record = client.submit(spec)
    for event in client.events(record.id):
        if isinstance(event.body, BoxBooted) and event.stage == "victim":
            os.kill(qemu_of(event.body.facts.domain), signal.SIGKILL)
            break
    final = ended(client, record.id)
    trouble = final.stages["victim"].trouble
    assert trouble is not None
    assert trouble.kind == "provider"
    assert trouble.cause in {"qemu-died", "vsock-died", "guest-agent-died"}
    assert final.stages["sibling"].state == "succeeded", final.stages["sibling"].trouble


def test_daemon_killed_in_the_middle(client: Client, home: Settings, stocks: InputFile) -> None:
    """kill -9: the next daemon keeps what was streamed, sweeps box and processes, and can go on."""
    record = client.submit(RunSpec(fresh=True, stages=(stage("analyst"),), inputs={"stocks.csv": stocks}))
    domain, seen = at_work(client, record.id)
    first = client.health().pid
    qemu = qemu_of(domain)
    os.kill(first, signal.SIGKILL)
    list(client.events(record.id, after=seen[-1].seq))
    final = client.run(record.id)
    assert final.trouble is not None
    assert (final.state, final.trouble.cause) == ("interrupted", "daemon-died")
    assert list(client.events(record.id))[: len(seen)] == seen
    client._connect()
    client.gc()
    until(lambda: not Path(f"/proc/{qemu}").exists() or zombie(qemu), 30)
    until(lambda: not list((home.runtime / "b").glob("*")), 10)
    assert client.health().pid != first
    client.resume(record.id)
    assert ended(client, record.id).state == "succeeded"


def test_a_pipeline_goes_on_where_its_daemon_was_killed(client: Client) -> None:
    """kill -9 in stage 3 of 4: stages 1 and 2 are not run again, 3 and 4 are, on the stored outputs."""

    def command(name: str, line: str, *needs: str) -> Stage:
        box = VoidBoxSpec(name=name, command=("/bin/sh", "-c", line), memory_mb=256)
        return Stage(box=box, needs=needs, stdin_from=needs[0] if needs else None)

    stages = (
        command("one", "date +%s%N; echo; echo one"),
        command("two", "cat; echo two", "one"),
        command("three", "cat; sleep 5; echo three", "two"),
        command("four", "cat; echo four", "three"),
    )
    record = client.submit(RunSpec(stages=stages))
    until(lambda: client.run(record.id).stages["three"].state == "running", 120)
    before = client.run(record.id)
    os.kill(client.health().pid, signal.SIGKILL)
    client._connect()
    assert client.run(record.id).state == "interrupted"
    client.resume(record.id)
    final = ended(client, record.id)
    assert final.state == "succeeded", final.trouble
    assert {n: s.attempts for n, s in final.stages.items()} == {"one": 1, "two": 1, "three": 2, "four": 1}
    assert final.stages["two"] == before.stages["two"]
    stamp = (before.stages["one"].output or "").splitlines()[0]
    assert (final.result or "").splitlines() == [stamp, "", "one", "two", "three", "four"]

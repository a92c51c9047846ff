"""Two workers with real boxes, a daemon that has none, and what is left when all have gone: nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.farm import Farm, open_farm
from voidbox_lab import images
from voidbox_lab.client import Client
from voidbox_lab.errors import ProviderError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Model, RunRecord, RunSpec, Stage, VoidBoxSpec
from voidbox_lab.spec.events import BoxBooted, ModelCall, Telemetry

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    """A scheduler, and two workers as a user starts them, each with room for one box."""
    cache = Settings.from_env().cache
    env = {"VOIDBOX_HOME": str(tmp_path / "home"), "VOIDBOX_CACHE": str(cache)}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    images.build(Settings.from_env().prepare())
    with open_farm(tmp_path) as farm:
        for number in range(2):
            out, err = tmp_path / f"worker-{number}.json", tmp_path / f"worker-{number}.log"
            with out.open("wb") as told, err.open("wb") as log:
                command = [sys.executable, "-m", "voidbox_lab.cli", "worker", farm.address]
                command += ["--memory-mb", "700", "--vcpus", "2", "--json"]
                farm.workers.append(subprocess.Popen(command, stdout=told, stderr=log))
        monkeypatch.setenv("VOIDBOX_EXECUTOR", f"dask:{farm.address}")
        yield farm
    shutil.rmtree(Settings.from_env().runtime, ignore_errors=True)


def _submitted(client: Client, spec: RunSpec) -> RunRecord:
    """A run of `spec`, as soon as a worker is there for it."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return client.submit(spec)
        except ProviderError as e:
            if e.cause != "cluster" or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_a_pipeline_on_two_workers(farm: Farm, tmp_path: Path) -> None:
    """`a | [b, c] | d`, with models, in boxes of both workers; each step sees what came before it."""

    def box(name: str) -> VoidBoxSpec:
        return VoidBoxSpec(name=name, prompt=f"Say {name}.", model=Model.parse("scripted:echo"))

    spec = RunSpec(
        stages=(
            Stage(box=box("a")),
            Stage(box=box("b"), needs=("a",)),
            Stage(box=box("c"), needs=("a",)),
            Stage(box=box("d"), needs=("b", "c")),
        )
    )
    with Client(Settings.from_env()) as client:
        run = _submitted(client, spec)
        events = list(client.events(run.id))
        record = client.run(run.id)
        client.shutdown()
    assert record.state == "succeeded", record
    bodies = [e.body for e in events]
    facts = [b.facts for b in bodies if isinstance(b, BoxBooted)]
    assert len(facts) == 4
    assert all(f.host for f in facts)
    assert sum(isinstance(b, ModelCall) for b in bodies) >= 4
    assert any(isinstance(b, Telemetry) for b in bodies)
    assert [s.tokens.total > 0 for s in record.stages.values()] == [True] * 4
    for number, worker in enumerate(farm.workers):
        farm.end(worker, signal.SIGTERM)
        assert worker.returncode == 0
        joined = json.loads((tmp_path / f"worker-{number}.json").read_text())
        assert (joined["memory_mb"], joined["vcpus"]) == (700, 2)
    marks = [f"guest={f.domain}," for f in facts]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                text = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            assert not any(mark in text for mark in marks), text
    runtime = Settings.from_env().runtime
    assert not [p for p in runtime.rglob("vb-*") if p.is_dir()]
    assert not list((Settings.from_env().cache / "cluster-inputs").glob(f"{runtime.name}-*"))

"""A measurement that fails costs the others nothing: the report says which and why. No box is started."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from voidbox_lab import bench
from voidbox_lab.bench import inside, starts, suite
from voidbox_lab.bench.samples import Figure, Series
from voidbox_lab.cli.app import run
from voidbox_lab.errors import LimitExceeded, ProviderError

NO_ROOM = ProviderError("There is no room.", cause="shm-full")
FIGURE = Figure("works", Series("it", "s", (1.0,)))


@dataclass
class Nowhere:
    """A stand without a libvirt."""

    cleared: list[bool] = field(default_factory=list)

    def machine(self) -> dict[str, Any]:
        """One of tests."""
        return {"cpus": 2}

    def clear(self) -> None:
        """Count."""
        self.cleared.append(True)


async def works(_stand: Any) -> list[Figure]:
    """Gives a figure."""
    return [FIGURE]


def fails(error: Exception) -> suite.Measure:
    """Gives none."""

    async def measure(_stand: Any) -> list[Figure]:
        raise error

    return measure


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Nowhere:
    """Measures of our own, and where they are made."""
    here = Nowhere()

    @asynccontextmanager
    async def stand(_memory_mb: int, _effort: float) -> AsyncIterator[Nowhere]:
        yield here

    measures = {
        "refused": fails(ExceptionGroup("tasks", [ExceptionGroup("tasks", [NO_ROOM]), ValueError()])),
        "full": fails(OSError(28, "No space left on device", "/dev/shm/x")),
        "wrong": fails(KeyError("start")),
        "works": works,
    }
    monkeypatch.setattr(suite, "stand", stand)
    monkeypatch.setattr(suite, "MEASURES", measures)
    return here


@pytest.mark.anyio
async def test_failures_are_kept_beside_the_figures(nowhere: Nowhere, caplog: pytest.LogCaptureFixture) -> None:
    """In order, one sentence each; a bug shows where it is; each leaves the next an empty directory."""
    told = []
    report = await bench.run(["refused", "full", "wrong", "works"], told=lambda name, _figures: told.append(name))
    assert report.figures == [FIGURE]
    assert [(failure.bench, failure.kind) for failure in report.failures] == [
        ("refused", "provider"),
        ("full", "provider"),
        ("wrong", "provider"),
    ]
    refused, full, wrong = (failure.message for failure in report.failures)
    assert refused == "There is no room."
    assert "/dev/shm/x" in full
    assert "KeyError" in wrong
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert told == ["works"]
    assert len(nowhere.cleared) == 4


@pytest.mark.usefixtures("nowhere")
def test_the_command_saves_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names what failed and exits as that error would."""
    target = tmp_path / "bench.json"
    assert run(["bench", "refused", "works", "--save", str(target), "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(target.read_text())
    assert [figure["bench"] for figure in json.loads(said.out)["figures"]] == ["works"]
    assert [f["message"] for f in json.loads(said.out)["failures"]] == ["There is no room."]
    assert not said.err, "the document says it all"


def test_a_box_that_started_otherwise() -> None:
    """Says why it is no clone."""
    facts = SimpleNamespace(start="cold", start_note="/dev/shm is full")
    box: Any = SimpleNamespace(id="vb-0123456789", facts=facts)
    starts.check_start(box, "cold")
    with pytest.raises(ProviderError, match=r"cold where clone is measured \(/dev/shm is full\)"):
        starts.check_start(box, "clone")


@pytest.mark.anyio
async def test_no_spare_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait ends and says so."""
    monkeypatch.setattr(starts, "SPARE_S", 0.1)
    boxes: Any = SimpleNamespace(pool=[])
    began = time.monotonic()
    with pytest.raises(LimitExceeded, match="0 of 1 spare boxes"):
        await starts.until_spare(boxes)
    assert time.monotonic() - began < 30


def test_a_process_that_is_gone() -> None:
    """Has no memory to count; a number above pid_max (proc(5)) is nobody's."""
    assert inside._memory_mb(1 << 23) is None

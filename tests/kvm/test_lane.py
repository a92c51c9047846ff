"""The lane's own parts: what it believes of a serial line, and which packages it carries."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kvm.lane import closure, outer
from tests.kvm.lane.root import LaneError, OuterRoot
from tests.kvm.lane.verdict import Judge
from voidbox_lab.machines.owner import process_start_time

NONCE = "0123456789abcdef"
GOOD = f"lane-verdict {NONCE} exit=0 ===== 12 passed, 1 warning in 80.10s (0:01:20) ====="


def judge(*lines: str) -> Judge:
    """A judge that heard `lines`."""
    heard = Judge(NONCE)
    for line in lines:
        heard.feed(line)
    return heard


def test_a_good_line_passes() -> None:
    """Also behind a kernel message on the same line, and whatever comes after."""
    heard = judge("lane: outer VM up", f"[   80.1] kvm: something {GOOD}", "reboot: Power down", "Kernel panic")
    assert heard.done
    verdict = heard.verdict("done")
    assert (verdict.ok, verdict.passed) == (True, 12)


@pytest.mark.parametrize(
    "line",
    [
        GOOD.replace(NONCE, "f" * 16),
        GOOD.replace("exit=0", "exit=1"),
        GOOD.replace("exit=0", "exit="),
        GOOD.replace("12 passed", "11 passed, 1 skipped"),
        GOOD.replace("12 passed", "11 passed, 1 xfailed"),
        GOOD.replace("12 passed", "12 deselected"),
        f"lane-verdict {NONCE} exit=0 ===== no tests ran in 0.1s =====",
        f"lane-verdict {NONCE} exit=0 0 passed in 0.1s",
        f"lane-verdict {NONCE} exit=0 ",
        "===== 12 passed in 3.0s =====",
    ],
)
def test_all_else_fails(line: str) -> None:
    """Another run's nonce, a bad status, a skip, nothing run, a truncated or missing verdict."""
    assert not judge(line).verdict("silent").ok


def test_the_first_verdict_stands() -> None:
    """A later line cannot mend it."""
    assert not judge(GOOD.replace("exit=0", "exit=1"), GOOD).verdict("done").ok


def test_a_panic_is_named() -> None:
    """A VM that dies says so, with the way it ended."""
    verdict = judge("[    1.8] Kernel panic - not syncing: Attempted to kill init!").verdict("it ended by itself")
    assert not verdict.ok
    assert "it ended by itself" in verdict.reason
    assert "Attempted to kill init" in verdict.reason


def test_a_silent_vm_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither silence nor endless talk outlives its bound, and nothing is left running."""
    root = OuterRoot(tmp_path, tmp_path, "3.11")

    def ends(script: str, limit_s: float, silence_s: float) -> str:
        monkeypatch.setattr(outer, "command", lambda *_: [sys.executable, "-u", "-c", script])
        began = time.monotonic()
        verdict = outer.boot(root, tmp_path, limit_s=limit_s, silence_s=silence_s, show=shown.append)
        assert time.monotonic() - began < 5
        assert not verdict.ok
        return verdict.reason

    shown: list[str] = []
    silent = "import os, time; print(os.getpid()); time.sleep(60)"
    assert "silent for 0.6 s" in ends(silent, 30, 0.6)
    deadline = time.monotonic() + 5
    while process_start_time(int(shown[0])) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process_start_time(int(shown[0])) is None
    assert "not done within 0.5 s" in ends("import time\nwhile 1: print('x'); time.sleep(0.01)", 0.5, 30)
    assert "status 3" in ends("raise SystemExit(3)", 30, 30)


def test_the_closure_follows_imports_and_requirements(tmp_path: Path) -> None:
    """What a file imports, lazily too, and all that needs in turn, and not what was left out."""
    source = tmp_path / "source.py"
    source.write_text(
        "import json\nimport libvirt\ndef f():\n    from pydantic import BaseModel\n", encoding="utf-8"
    )
    names = closure.distributions([source], without=["Libvirt_Python"], python="3.11")
    assert {"pydantic", "pydantic-core", "annotated-types", "typing-extensions"} <= names
    assert not names & {"libvirt-python", "jupyterlab", "pytest"}
    assert "idna" in closure.distributions([source], also=["anyio"], without=[], python="3.11")


def test_an_absent_package_is_named() -> None:
    """One sentence, with what to do."""
    with pytest.raises(LaneError, match=r"no-such-package.*scripts/setup --dev"):
        closure.requirements(["no-such-package"], python="3.11")


def test_a_copied_closure_imports_alone(tmp_path: Path) -> None:
    """The copy is whole: an interpreter that sees nothing else can use it, entry points included."""
    python = ".".join(map(str, sys.version_info[:2]))
    closure.copy(closure.requirements(["anyio"], python=python), tmp_path, python=python)
    script = (
        "import anyio, json, sys; from importlib.metadata import entry_points\n"
        "print(json.dumps([anyio.__file__, [e.name for e in entry_points(group='pytest11')]]))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
        timeout=60,
        check=True,
    )
    place, plugins = json.loads(done.stdout)
    assert Path(place).is_relative_to(tmp_path)
    assert plugins == ["anyio"]

"""The command line without a box: help, usage errors, exit codes, notebooks, damaged things."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from voidbox_lab import errors
from voidbox_lab.cli import notebook
from voidbox_lab.cli.app import run
from voidbox_lab.cli.output import EXIT, ago, dollars
from voidbox_lab.observe.quantities import size
from voidbox_lab.settings import Settings
from voidbox_lab.spec.api import ExecEvent, ExecExit, ExecOutput, ExecRequest, ExecWaiting


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own: nothing built, no daemon."""
    monkeypatch.setenv("VOIDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VOIDBOX_CACHE", raising=False)
    return tmp_path / "home"


def book(path: Path, *sources: str) -> Path:
    """A notebook with these code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_template_of_another_version(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is listed with what is known of it: whole as far as names and sizes tell, and with keys of its own."""
    path = home / "cache" / "templates" / ("0" * 32)
    path.mkdir(parents=True)
    files = {name: {"sha256": "0", "size": 0} for name in ("memory.pages", "scratch.pages", "state")}
    for name in files:
        (path / name).touch()
    meta = {"format": 1, "key": {"memory_mb": 192, "qemu": ["7.2"]}, "files": files, "made": 0}
    (path / "template.json").write_text(json.dumps(meta))
    assert run(["template", "list"]) == 0
    assert "image ?  192 MB, ? vCPU" in capsys.readouterr().out


SHOW = """
from IPython.display import display
display({{"text/plain": "run", "application/vnd.voidbox.run+json": {record}}}, raw=True)
"""


def record(state: str) -> dict[str, Any]:
    """What a run's output in a notebook holds."""
    stage = {
        "state": state,
        "isolation": "tcg",
        "vsock": "user",
        "model": "scripted:x",
        "model_source": "scripted",
    }
    stage |= {
        "tokens": 5,
        "cost_usd": None,
        "boot_s": 6.5,
        "duration_s": 12.0,
        "trouble": None,
        "output": "42 [red]",
    }
    return {"version": 1, "run": "run-1", "state": state, "stages": {"only": stage}}


@pytest.mark.parametrize("argv", [["runz"], ["exec", "--memory", "x", "--", "true"], ["image", "build", "a", "b"]])
def test_usage_errors_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """They are user errors like any other, without a traceback."""
    assert run(argv) == 2
    assert "Error" in capsys.readouterr().err


def test_a_box_too_small_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the option and the bound, before anything is started."""
    assert run(["exec", "--memory", "4", "--", "true"]) == 2
    assert "voidbox exec --memory:" in capsys.readouterr().err


def test_a_misspelt_option_is_not_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """No box is booted to look for a program called --memroy; after the command, options are the command's."""
    assert run(["exec", "--memroy", "300", "true"]) == 2
    assert "--memroy" in capsys.readouterr().err
    assert run(["exec", "--memory", "4", "ls", "--all"]) == 2
    assert "--memory" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the directory and the variable; root writes everywhere, hence a file in the way."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("VOIDBOX_HOME", str(tmp_path / "file"))
    for argv in (["runs"], ["image", "build"], ["exec", "true"]):
        assert run(argv) in {2, 125}
        said = capsys.readouterr().err
        assert "VOIDBOX_HOME" in said
        assert str(tmp_path / "file") in said


def test_ctrl_c_says_cancelled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the shell's exit code for it."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("voidbox_lab.cli.which.Client", interrupt)
    assert run(["runs"]) == EXIT["cancelled"]
    assert "cancelled" in capsys.readouterr().err


def test_a_bound_of_nothing_is_refused(tmp_path: Path) -> None:
    """Nbclient would take 0 for no bound at all."""
    assert run(["run", str(book(tmp_path / "a.ipynb", "1")), "--timeout", "0"]) == 2


def test_a_missing_image_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """With its fix."""
    assert run(["image", "verify"]) == EXIT["provider"]
    assert "voidbox image build" in capsys.readouterr().err
    assert run(["image", "list"]) == 0
    assert "voidbox image build" in capsys.readouterr().out


def test_status_without_a_daemon_starts_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Asking is not starting."""
    assert run(["daemon", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["running"] is False
    assert run(["daemon", "stop"]) == 0


@pytest.mark.parametrize(("kind", "code"), [("command", 1), ("user", 2), ("provider", 3), ("limit", 4)])
def test_each_kind_of_trouble_has_its_code(
    kind: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error from anywhere below becomes its sentence and its code."""

    def fail(*_: object, **__: object) -> None:
        raise errors.from_dict({"kind": kind, "message": "It is [bold]so[/bold]."})

    monkeypatch.setattr("voidbox_lab.cli.which.Client", fail)
    assert run(["runs"]) == code
    assert "It is [bold]so[/bold]." in capsys.readouterr().err


def test_exec_says_that_it_waits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error: standard output is the command's own."""

    class Waits:
        def __init__(self, settings: Settings) -> None:
            return

        def __enter__(self) -> Waits:
            return self

        def close(self) -> None:
            return

        def execute(self, request: ExecRequest) -> Iterator[ExecEvent]:
            message = "Waiting for room: needs 608 MiB, 9 MiB free, 2 in front."
            yield ExecWaiting(reason="memory", ahead=2, message=message)
            yield ExecOutput(stream="stdout", data=base64.b64encode(b"hi").decode())
            yield ExecExit(code=7, duration_s=0.1)

    monkeypatch.setattr("voidbox_lab.cli.which.Client", Waits)
    assert run(["exec", "--", "true"]) == 7
    said = capsys.readouterr()
    assert said.err == "Waiting for room: needs 608 MiB, 9 MiB free, 2 in front.\n"
    assert said.out == "hi"


def test_a_notebook_runs_and_its_runs_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answer, isolation, source, tokens, cost and times, for each stage; guest text is not markup."""
    path = book(tmp_path / "a.ipynb", "x = 1", SHOW.format(record=record("succeeded")))
    assert run(["run", str(path), "-o", str(tmp_path / "out" / "a.ipynb")]) == 0
    text = capsys.readouterr().out
    for word in ("only", "42 [red]", "tcg", "user", "scripted:x (scripted)", "unpriced", "6.5 s", "12 s"):
        assert word in text
    assert nbformat.read(tmp_path / "out" / "a.ipynb", as_version=4).cells[1].outputs


def test_an_answer_taken_again_is_not_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing ran: no box, no cost. An answer of a run that the notebook does not show is printed all the same."""
    first, again, other = record("succeeded"), record("succeeded"), record("succeeded")
    again["run"], other["run"] = "run-2", "run-3"
    nothing = {"isolation": None, "vsock": None, "tokens": 0, "boot_s": None, "duration_s": 0.0}
    again["stages"]["only"] |= {**nothing, "cached": {"run": "run-1", "stage": "only"}}
    other["stages"]["only"] |= {**nothing, "cached": {"run": "run-0", "stage": "only"}, "output": "43"}
    path = book(tmp_path / "a.ipynb", *(SHOW.format(record=r) for r in (first, again, other)))
    assert run(["run", str(path)]) == 0
    text = capsys.readouterr().out
    assert (text.count("42"), text.count("43")) == (1, 1)
    assert "answer of run run-1" in text
    assert text.count("unpriced") == 1, "only the run that asked a model"


def test_a_notebook_that_fails_keeps_what_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The runs before the failing cell are printed, then one sentence, then exit code 1."""
    path = book(tmp_path / "a.ipynb", SHOW.format(record=record("succeeded")), "1 / 0")
    assert run(["run", str(path), "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)[0]["run"] == "run-1"
    assert "ZeroDivisionError" in shown.err


def test_a_failed_run_fails_the_command(tmp_path: Path) -> None:
    """Even if the notebook itself went through."""
    assert run(["run", str(book(tmp_path / "a.ipynb", SHOW.format(record=record("failed"))))]) == 1


def test_a_slow_cell_is_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bound is in the sentence."""
    assert run(["run", str(book(tmp_path / "a.ipynb", "import time; time.sleep(60)")), "--timeout", "2"]) == 4
    assert "2 s" in capsys.readouterr().err


def test_ctrl_c_stops_the_cell_and_those_after_it(tmp_path: Path) -> None:
    """The kernel is interrupted, as by JupyterLab's button: a cell that waits for a run can then cancel it."""
    wait = "try:\n    Path('up').touch()\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    Path('told').touch()"
    path = book(tmp_path / "a.ipynb", "import time\nfrom pathlib import Path", wait, "Path('next').touch()")
    command = [sys.executable, "-m", "voidbox_lab.cli", "run", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "up").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT["cancelled"]
    assert "cancelled: The notebook was stopped" in said
    assert "Traceback" not in said
    assert (tmp_path / "told").exists()
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize(("name", "code"), [("UserError", 2), ("BoxLost", 3), ("LimitExceeded", 4)])
def test_an_error_of_ours_keeps_its_kind(name: str, code: int, tmp_path: Path) -> None:
    """Through the notebook, to the exit code."""
    limit = ", limit='time'" if name == "LimitExceeded" else ""
    source = f"from voidbox_lab import errors\nraise errors.{name}('It is so.'{limit})"
    assert run(["run", str(book(tmp_path / "a.ipynb", source))]) == code


@pytest.mark.parametrize("content", [None, b"not json", b"{}"])
def test_not_a_notebook_is_a_user_error(content: bytes | None, tmp_path: Path) -> None:
    """Missing, not JSON, or JSON of another kind."""
    path = tmp_path / "a.ipynb"
    if content is not None:
        path.write_bytes(content)
    assert run(["run", str(path)]) == 2


def test_the_last_state_of_a_run_counts() -> None:
    """A run shown twice is one run."""
    cell = nbformat.v4.new_code_cell()
    cell.outputs = [
        nbformat.v4.new_output("display_data", data={notebook.RUN_MIME: record(s)})
        for s in ("running", "succeeded")
    ]
    assert [r["state"] for r in notebook.runs(nbformat.v4.new_notebook(cells=[cell]))] == ["succeeded"]


def test_figures_for_people() -> None:
    """Unpriced is never nothing; units fit."""
    assert (dollars(None), dollars(0.0), dollars(1.23456)) == ("unpriced", "$0.0000", "$1.2346")
    assert (ago(None), ago(0.31), ago(41.2), ago(125)) == ("-", "0.3 s", "41 s", "2 min 5 s")
    assert (size(12), size(2048), size(5 << 30)) == ("12 B", "2.0 kB", "5.0 GB")


def test_a_closed_pipe_is_no_error() -> None:
    """``voidbox --help | head -1`` says nothing on standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "voidbox_lab.cli", "exec", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err

"""``voidbox run`` and ``voidbox validate`` with spec files: the daemon is real, its boxes are not."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio import to_thread
from rich.console import Console

from tests.daemon.conftest import house, settings
from tests.engine.doubles import FakeExit, says
from tests.skills.servers import committed
from voidbox_lab.cli import app, notebook
from voidbox_lab.cli.progress import ProgressSurface, rendered
from voidbox_lab.cli.run import models
from voidbox_lab.errors import UserError
from voidbox_lab.spec import Model, RunRecord, RunSpec, StageRecord
from voidbox_lab.spec.files import ALL, SpecFileError, read
from voidbox_lab.widgets.view_state import begin, settle

__all__ = ["house", "settings"]

AGENT = "kind: agent\nversion: 1\nname: {}\nprompt: p\nmodel: scripted:echo\n"
PIPELINE = """\
kind: pipeline
version: 1
budget: {usd: 2, tokens: 50}
stages:
  a: {prompt: p, model: scripted:echo, inputs: {x.csv: x.csv}}
  b: {prompt: p, model: scripted:echo, map: [1, 2]}
flow: a | b
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a spec file beside ``x.csv``; commands look for the daemon of this test."""
    monkeypatch.setenv("VOIDBOX_HOME", str(tmp_path / "home"))
    (tmp_path / "x.csv").write_text("a,b\n")

    def write(text: str, name: str = "f.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def reach(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the daemon of this test, whose settings are made without this variable."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")


@pytest.fixture
def command(reach: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command line beside the daemon; its exit code and what it wrote."""

    async def run(*argv: str) -> SimpleNamespace:
        code = await to_thread.run_sync(app.run, list(argv))
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


@pytest.mark.anyio
async def test_the_result_is_all_that_is_on_standard_output(house: Any, file: Any, command: Any) -> None:
    """Progress goes to standard error, in lines where that is no terminal."""
    ran = await command("run", file(AGENT.format("one")))
    assert (ran.code, ran.out) == (0, "one done\n")
    assert "one  running" in ran.err
    assert "succeeded after" in ran.err


@pytest.mark.anyio
async def test_a_pipeline_with_its_files(house: Any, file: Any, command: Any, tmp_path: Path) -> None:
    """Inputs, items and what the command line adds reach the boxes; options reach the spec."""
    (tmp_path / "more.txt").write_text("more")
    argv = [
        "run",
        file(PIPELINE),
        "--input",
        str(tmp_path / "more.txt"),
        "--budget",
        "usd=1,seconds=60",
        "--fresh",
    ]
    ran = await command(*argv, "--model", "scripted:quickstart", "--model", "b=scripted:shell", "--json")
    assert ran.code == 0, ran.err
    shown = json.loads(ran.out)
    assert (shown["state"], json.loads(shown["result"])) == ("succeeded", ["b-1 done", "b-2 done"])
    assert set(shown["stages"]) == {"a", "b-1", "b-2"}
    spec = (await house.client.run(shown["run"])).spec
    assert spec.fresh
    assert spec.budget.model_dump() == {"usd": 1, "tokens": 50, "seconds": 60}
    assert [str(s.box.model) for s in spec.stages] == ["scripted:quickstart", "scripted:shell", "scripted:shell"]
    files = [box.files for box in house.backend.boxes_]
    assert files[0]["/workspace/input/x.csv"] == b"a,b\n"
    assert files[0]["/workspace/input/more.txt"] == b"more"
    assert sorted(f["/workspace/input/item.json"] for f in files[1:]) == [b"1", b"2"]


@pytest.mark.anyio
async def test_a_long_result_is_whole(house: Any, file: Any, command: Any) -> None:
    """The record has its beginning only; the artifact has the rest."""
    house.backend.scripts["long"] = says("x", result="y" * 300_000)
    ran = await command("run", file(AGENT.format("long")))
    assert (ran.code, ran.out) == (0, "y" * 300_000 + "\n")


@pytest.mark.anyio
async def test_a_failed_run_has_the_exit_code_of_its_trouble(house: Any, file: Any, command: Any) -> None:
    """And nothing on standard output, or with --json the facts."""
    house.backend.scripts["bad"] = [("exit", FakeExit(code=7))]
    ran = await command("run", file(AGENT.format("bad")))
    assert (ran.code, ran.out) == (1, "")
    assert "command error: Stage 'bad' of run" in ran.err
    ran = await command("run", file(AGENT.format("bad")), "--json")
    assert (ran.code, json.loads(ran.out)["trouble"]["kind"]) == (1, "command")
    ran = await command("run", file(AGENT.format("slow") + "timeout: 0.2\n"))
    assert (ran.code, ran.out) == (4, "")
    ran = await command("run", file(AGENT.format("k").replace("scripted:echo", "anthropic:x")))
    assert (ran.code, ran.out) == (2, "")
    assert "ANTHROPIC_API_KEY" in ran.err


@pytest.mark.anyio
async def test_detached_it_goes_on(house: Any, file: Any, command: Any) -> None:
    """The run's id is printed, and the command is gone before the run has ended."""
    ran = await command("run", file(AGENT.format("slow")), "--detach")
    assert ran.code == 0
    run = ran.out.strip()
    assert (await house.client.run(run)).state in {"queued", "running"}
    await house.client.cancel(run)


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_cancels_the_run(house: Any, reach: None, file: Any, number: int) -> None:
    """Ctrl-C in a terminal, TERM from a supervisor: exit code 130, and nothing goes on."""
    argv = [sys.executable, "-m", "voidbox_lab.cli", "run", file(AGENT.format("slow"))]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        with anyio.fail_after(60):
            while not any(r.state == "running" for r in await house.client.runs()):
                await anyio.sleep(0.1)
            await anyio.sleep(0.5)
            process.send_signal(number)
            out, err = await to_thread.run_sync(process.communicate)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, ""), err
    assert "cancelled: The run was cancelled" in err
    assert "Traceback" not in err
    (record,) = await house.client.runs()
    assert record.state == "cancelled"


@pytest.mark.anyio
async def test_on_a_terminal_there_is_a_line_for_each_stage(house: Any, reach: None, file: Any) -> None:
    """Renewed in place on standard error; a result that goes to a file is as the guest wrote it."""
    house.backend.scripts["one"] = [("sleep", 1), *says("x", result="\x1b[31mred")]
    master, slave = pty.openpty()
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: _drain(master, seen))
    reader.start()
    argv = [sys.executable, "-m", "voidbox_lab.cli", "run", file(AGENT.format("one"))]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    ran = await to_thread.run_sync(
        lambda: subprocess.run(argv, stdout=subprocess.PIPE, stderr=slave, env=env, timeout=60, check=False)
    )
    os.close(slave)
    await to_thread.run_sync(reader.join)
    os.close(master)
    assert (ran.returncode, ran.stdout) == (0, b"\x1b[31mred\n")
    shown = b"".join(seen).decode()
    assert "one" in shown
    assert "succeeded" in shown
    assert "\x1b[2K" in shown


def _drain(master: int, seen: list[bytes]) -> None:
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # EIO: nobody has the other end any more
            return
        seen.append(data)


@pytest.mark.parametrize(
    ("argv", "text", "says"),
    [
        (["--output", "x"], AGENT, "--output is for notebooks"),
        (["--timeout", "5"], AGENT, "--timeout is for notebooks"),
        (["--model", "gpt"], AGENT, "names no known provider"),
        (["--model", "ona=scripted:echo"], AGENT, "did you mean 'one'?"),
        (["--model", "one=scripted:a", "--model", "one=scripted:b"], AGENT, "second model for one"),
        (["--budget", "euro=1"], AGENT, "The budget 'euro=1'"),
        (["--input", "nowhere"], AGENT, "no input file 'nowhere'"),
        ([], "kind: sandbox\nversion: 1\n", "a sandbox without a command"),
        ([], "kind: sandbox\nversion: 1\nmemry: 5\n", "f.yaml:3:1: memry: there is no such field here"),
    ],
)
def test_what_cannot_be_run_starts_nothing(
    argv: list[str], text: str, says: str, file: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It is told before a daemon is started or a byte copied."""
    assert app.run(["run", file(text.format("one")), *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err.replace("\n", " ") or says in captured.err
    assert not (tmp_path / "home" / "data" / "logs").exists()


def test_options_of_specs_and_names_of_files(
    file: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for argv in (["--model", "scripted:x"], ["--input", "x"], ["--budget", "usd=1"], ["--detach"]):
        assert app.run(["run", str(tmp_path / "x.ipynb"), *argv]) == 2
        assert f"{argv[0]} is for spec files" in capsys.readouterr().err
    assert app.run(["run", file("x", "x.txt")]) == 2
    assert "neither a spec file nor a notebook" in capsys.readouterr().err


def test_models_by_stage() -> None:
    """What has a colon before its '=' is a URL of a model for all."""
    url = "openai:m@http://h/?a=b"
    assert models(["a=ollama:x", url]) == {"a": Model.parse("ollama:x"), ALL: Model.parse(url)}
    with pytest.raises(UserError, match="for all stages"):
        models(["ollama:x", "ollama:y"])


def test_fresh_notebooks(file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel is told by its environment, and has the rest of ours."""
    import nbformat

    source = "import os\nassert (os.environ.get('VOIDBOX_FRESH'), 'VOIDBOX_HOME' in os.environ) == ('1', True)"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(book, tmp_path / "f.ipynb")
    assert app.run(["run", str(tmp_path / "f.ipynb"), "--fresh"]) == 0, capsys.readouterr().err
    assert app.run(["run", str(tmp_path / "f.ipynb")]) == 1
    assert notebook.RUN_MIME


def test_validate_says_what_a_file_is(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Stages, what they run on, what they need, and the files that would be taken along."""
    assert app.run(["validate", file(PIPELINE)]) == 0
    out = capsys.readouterr().out
    assert "f.yaml: pipeline, 3 stages\n" in out
    assert "  b-2  lab-agent on scripted:echo, 512 MB, after a\n" in out
    assert "x.csv (4 B)" in out


def test_validate_in_json(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """All files, good and bad; the run is the one that would be submitted."""
    good, bad = file(PIPELINE), file("kind: sandbox\nversion: 1\nmemry: 5\n", "bad.yaml")
    assert app.run(["validate", good, bad, "nowhere.yaml", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [one["valid"] for one in found] == [True, False, False]
    run = read(Path(good)).run
    assert run is not None
    assert RunSpec.model_validate(found[0]["run"]) == run
    assert found[0]["digest"] == run.digest
    assert [s["needs"] for s in found[0]["stages"]] == [[], ["a"], ["a"]]
    message = "there is no such field here; did you mean 'memory'?"
    assert found[1]["errors"] == [{"line": 3, "column": 1, "field": "memry", "message": message}]
    assert found[2]["errors"][0]["line"] is None


def test_validate_looks_at_skills_without_a_network(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not here yet is said to be; --fetch gets it, and then it is known."""
    where = Path(file("", "x")).parent / "market"
    commit = committed(where, {"fx/SKILL.md": "Rates.\n", "fx/a.csv": "1\n"})
    remote = f"{{remote: 'git+file://{where}#subdirectory=fx', name: fx, revision: {commit}}}"
    text = AGENT.format("one") + f"skills: [{{cli: jq}}, {remote}]\n"
    path = file(text + "policy: {network: open, egress: [10.0.0.1:80]}\n")
    assert app.run(["validate", path]) == 0
    out = capsys.readouterr().out
    assert "not all of its skills are here; --fetch gets them" in out
    assert f"takes file://{where} fx @{commit}" in out
    for options in (["--fetch"], []):
        assert app.run(["validate", path, *options]) == 0
        out = capsys.readouterr().out
        assert f"skills: jq (deb:jq), fx (file://{where} at {commit[:12]})" in out
        assert "looser than the default policy: network open, private addresses 10.0.0.1:80" in out
    assert app.run(["validate", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert [s["kind"] for s in found["stages"][0]["skills"]] == ["cli", "remote"]


def test_validate_writes_errors_as_compilers_do(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each on standard error, with nothing before the file's name."""
    bad = file("kind: sandbox\nversion: 1\nmemry: 5\nvcpus: x\n")
    assert app.run(["validate", bad]) == 2
    captured = capsys.readouterr()
    assert [line.split(" ")[0] for line in captured.err.splitlines()] == [f"{bad}:3:1:", f"{bad}:4:8:"]
    with pytest.raises(SpecFileError):
        read(Path(bad))


def test_validate_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["validate", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"].startswith("voidbox-lab spec file")
    assert app.run(["validate"]) == 2


def record_of(count: int) -> RunRecord:
    """A run of many stages, one of them at work, one failed, half done."""
    text = json.dumps({"kind": "pipeline", "version": 1, "stages": {f"s{i}": {"run": "ls"} for i in range(count)}})
    from voidbox_lab.spec.files.build import built
    from voidbox_lab.spec.files.check import checked
    from voidbox_lab.spec.files.reading import Reading
    from voidbox_lab.spec.files.source import parse

    written, _ = checked(parse(Path("f.json"), text), None)
    assert written is not None
    spec = built(written, Reading(Path()), {})
    assert spec is not None
    states = {f"s{i}": "succeeded" if i < count // 2 else "queued" for i in range(count)}
    states |= {"s7": "running", "s3": "failed"}
    stages = {n: StageRecord.model_validate({"name": n, "state": s}) for n, s in states.items()}
    return RunRecord(id="run-1", spec=spec, state="running", created_at=0, stages=stages)


def test_many_stages_fit_a_small_terminal() -> None:
    """Those at work and those that failed are shown, the others counted; no line is broken."""
    record = record_of(60)
    console = Console(width=40, height=12, record=True, force_terminal=True, file=io.StringIO())
    console.print(rendered(settle(begin(record), record), 8))
    lines = console.export_text().splitlines()
    assert len(lines) == 8
    assert lines[1].split() == ["s7", "running"]
    assert any(line.split()[:2] == ["s3", "failed"] for line in lines)
    assert lines[-1].startswith("… and ")


def test_progress_can_be_opened_and_closed_without_an_event() -> None:
    record = record_of(8)
    shown = io.StringIO()
    surface = ProgressSurface(Console(file=shown, force_terminal=True, width=80, height=20))
    surface.open(begin(record))
    surface.close(settle(begin(record), record))
    assert "s7" in shown.getvalue()

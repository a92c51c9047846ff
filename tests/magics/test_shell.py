"""The magics in a real IPython shell: declaring, running, failing, stopping, completing, leaving."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.skills.servers import committed
from voidbox_lab import Skill, load_ipython_extension, unload_ipython_extension
from voidbox_lab.errors import Cancelled, LimitExceeded, UserError
from voidbox_lab.magics import registry
from voidbox_lab.magics.pipeline import build
from voidbox_lab.magics.transform import help_on_subcommands
from voidbox_lab.spec import digest_bytes

SKILL = "%%voidbox skill price-history --description 'How to read the table'\n# Prices\nOne row per month."


def stage(model: str = "quickstart", name: str = "analyst", options: str = "") -> str:
    """A stage cell."""
    first = f"%%voidbox stage {name} --skill price-history --model scripted:{model} {options}"
    return first + "\nWhich did best? {x} $y"


def cell(shell: Any, source: str) -> Any:
    """Execute a cell; its exception is raised here."""
    result = shell.run_cell(source)
    result.raise_error()
    return result.result


def declared(shell: Any, model: str = "quickstart") -> None:
    """A skill and a stage."""
    cell(shell, SKILL)
    cell(shell, stage(model))


def test_cells_declare_and_redeclare(shell: Any) -> None:
    """A skill's cell may be executed again after the stage's: the stage has the new text."""
    declared(shell)
    spec = registry(shell).stage("analyst")
    assert spec.prompt == "Which did best? {x} $y\n"
    assert spec.skills[0].description == "How to read the table"
    assert (spec.memory_mb, spec.timeout_s, str(spec.model)) == (512, 300, "scripted:quickstart")
    cell(shell, SKILL.replace("per month", "per week"))
    assert "per week" in registry(shell).stage("analyst").skills[0].body
    cell(shell, stage(options="--memory 256 --allow-command python3 --allow-command ls"))
    spec = registry(shell).stage("analyst")
    assert spec.memory_mb == 256
    assert spec.policy.commands == ("python3", "ls")


def test_a_skill_may_name_itself_in_its_front_matter(shell: Any) -> None:
    """The cell has the shape of a SKILL.md file."""
    cell(shell, "%%voidbox skill\n---\nname: csv\ndescription: Tables\n---\nRead it.")
    assert registry(shell).skills["csv"].description == "Tables"


def test_skills_of_every_kind_in_lines_and_cells(shell: Any, tmp_path: Path) -> None:
    """A line for what has no text; a cell where it says how to use it."""
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "SKILL.md").write_text("Take notes.\n")
    (folder / "form.txt").write_text("a\n")
    commit = committed(tmp_path / "market", {"fx/SKILL.md": "Rates.\n"})
    for source in (
        "%voidbox skill clock --mcp 'mcp-server-time --local-timezone UTC' --package pypi:mcp-server-time "
        "--env TZ=UTC --tool now --description Clock",
        "%voidbox skill jq --cli deb:jq",
        "%%voidbox skill http --cli pypi:httpie --program http --program https\nUse http.",
        "%voidbox skill codex --agent",
        "%voidbox skill --oci python:3.12-slim --path /py",
        f"%voidbox skill --remote git+file://{tmp_path}/market@main --path fx",
        "%voidbox skill --file notes",
    ):
        cell(shell, source)
    skills = registry(shell).skills
    assert skills["clock"] == Skill.mcp(
        "clock", "mcp-server-time --local-timezone UTC", packages="pypi:mcp-server-time", env={"TZ": "UTC"},
        tools=["now"], description="Clock",
    )  # fmt: skip
    assert skills["jq"] == Skill.cli("jq")
    assert skills["http"] == Skill.cli("http", "pypi:httpie", commands=["http", "https"], body="Use http.\n")
    assert skills["python"] == Skill.oci("python:3.12-slim", path="/py")
    fx = skills["fx"]
    assert isinstance(fx, Skill)
    assert fx.origin is not None
    assert fx.origin.revision == commit
    frame = cell(shell, "%voidbox skills")
    assert list(frame["kind"]) == ["mcp", "cli", "cli", "agent", "oci", "remote", "file"]
    assert f"market at {commit[:12]}" in frame["made_of"].iloc[5]


def test_policy_mounts_and_files_of_skills_reach_the_run(
    shell: Any, replayed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--allow is an allowlist; folders are absolute; the bytes beside a SKILL.md go along."""
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "SKILL.md").write_text("Take notes.\n")
    (folder / "form.txt").write_text("a\n")
    sent = []
    upload = replayed.ReplayClient.upload

    async def kept(self: Any, source: Any) -> Any:
        sent.append(source)
        return await upload(self, source)

    monkeypatch.setattr(replayed.ReplayClient, "upload", kept)
    cell(shell, "%voidbox skill --file notes")
    cell(
        shell,
        "%%voidbox stage a --model scripted:quickstart --skill notes --allow pypi.org:443 --commands git,ls "
        "--allow-command jq --mount notes:/notes --mount notes:/out:rw --volume cache:/data --image python:3.12"
        "\nDo.",
    )
    cell(shell, "%voidbox run a --quiet")
    box = replayed.RUNS["replay-1"].record.spec.stages[0].box
    assert (box.policy.network, box.policy.egress) == ("allowlist", ("pypi.org:443",))
    assert box.policy.commands == ("git", "ls", "jq")
    assert [str(m) for m in box.mounts] == [f"{folder}:/notes:ro", f"{folder}:/out:rw"]
    assert [str(v) for v in box.volumes] == ["cache:/data"]
    assert box.image == "python:3.12"
    assert sent == [b"a\n"]
    cell(shell, "%%voidbox stage b --model scripted:quickstart --network monitored\nDo.")
    assert registry(shell).stage("b").policy.network == "monitored"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("%voidbox skill x", "A skill has its text in a cell"),
        ("%voidbox skill --mcp server", "needs a name; write '%voidbox skill NAME --mcp"),
        ("%voidbox skill x --mcp a --cli deb:b", "not allowed with argument"),
        ("%voidbox skill x --cli deb:b --tool t", "--tool goes with --mcp"),
        ("%voidbox skill x --mcp a --env TZ", "is not NAME=VALUE"),
        ("%%voidbox skill x --mcp a\nText", "has no text of its own"),
        ("%voidbox skill x --remote nowhere", "is not a remote skill"),
        ("%%voidbox stage x --model scripted:q --mount nowhere:/a\nDo.", "There is no folder 'nowhere' to mount"),
        ("%%voidbox stage x --model scripted:q --mount :/a\nDo.", "is not an absolute path of a folder"),
        ("%%voidbox stage x --model scripted:q --network allowlist\nDo.", "egress names no host"),
        ("%%voidbox stage x --model scripted:q --network all\nDo.", "invalid choice: 'all'"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(shell: Any, source: str, says: str) -> None:
    """With what does."""
    with pytest.raises(UserError) as caught:
        cell(shell, source)
    assert says in caught.value.message


def test_a_run_is_returned_and_told_in_lines(
    shell: Any, replayed: ModuleType, capsys: Any, tmp_path: Path
) -> None:
    """In a terminal: states, calls, the answer; the input's bytes went along."""
    (tmp_path / "stocks.csv").write_text("symbol,date,price\n")
    declared(shell)
    cell(shell, "run = %voidbox run analyst --input stocks.csv")
    run = shell.user_ns["run"]
    assert run.stages["analyst"].state == "succeeded"
    assert "AAPL had the best" in run.result
    record = replayed.RUNS["replay-1"].record
    assert record.spec.inputs["stocks.csv"].size == 18
    out = capsys.readouterr().out
    assert "analyst  provisioning: TCG box" in out
    assert "analyst  > bash head -3" in out
    assert "(TCG, scripted model)" in out


def test_quiet_says_nothing(shell: Any, replayed: ModuleType, capsys: Any) -> None:
    """Only the result."""
    declared(shell)
    cell(shell, "run = %voidbox run analyst --quiet")
    assert capsys.readouterr().out == ""


def test_pipelines_and_time_limits_reach_the_spec(shell: Any, replayed: ModuleType) -> None:
    """``a | [b, c] | d`` becomes needs; --timeout replaces each stage's."""
    cell(shell, SKILL)
    for name in "abcd":
        cell(shell, stage(name=name))
    cell(shell, "run = %voidbox run a | [b, c] | d --quiet --timeout 7")
    spec = replayed.RUNS["replay-1"].record.spec
    assert {s.box.name: s.needs for s in spec.stages} == {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    assert {s.box.timeout_s for s in spec.stages} == {7}


def test_a_stage_has_files_of_its_own(shell: Any, replayed: ModuleType) -> None:
    """They are read when it runs, not when it is declared; no other stage gets them."""
    Path("news.csv").write_text("old")
    cell(shell, SKILL)
    cell(shell, stage(name="a"))
    cell(shell, stage(name="b", options="--input news.csv"))
    Path("news.csv").write_text("new")
    cell(shell, "%voidbox run a | b --quiet")
    first, second = replayed.RUNS["replay-1"].record.spec.stages
    assert first.inputs == {}
    assert second.inputs["news.csv"].digest == digest_bytes(b"new")
    Path("news.csv").unlink()
    with pytest.raises(UserError, match=r"input file 'news\.csv'"):
        cell(shell, "%voidbox run a | b --quiet")


def test_variables_hold_models_and_runs(shell: Any, replayed: ModuleType) -> None:
    """``$NAME``: a model chosen in one cell serves a stage in another; a run is shown by what holds it."""
    cell(shell, "from voidbox_lab import Model\nMODEL = 'scripted:echo'\nOTHER = Model.parse('ollama:x')")
    cell(shell, "%%voidbox stage a --model $MODEL\nhi")
    cell(shell, "%%voidbox stage b --model $OTHER\nhi")
    assert [str(registry(shell).stage(n).model) for n in "ab"] == ["scripted:echo", "ollama:x"]
    declared(shell)
    cell(shell, "run = %voidbox run analyst --quiet")
    assert cell(shell, "%voidbox attach $run --quiet").id == "replay-1"
    cell(shell, "name = run.id")
    assert cell(shell, "%voidbox attach $name --quiet").id == "replay-1"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("%voidbox run analist", "The stage 'analist' is not known; did you mean 'analyst'?"),
        ("%voidbox run analyst --input stock.csv", "did you mean 'stocks.csv'?"),
        ("%voidbox run analyst --input .", "is a directory"),
        ("%voidbox run analyst --inptu x", "did you mean '--input'?"),
        ("%voidbox run analyst analyst", "stands in the pipeline twice"),
        ("%voidbox attach nothing", "There is no run 'nothing'"),
        ("%voidbox rum analyst", "did you mean 'run'?"),
        ("%%voidbox stage x --model scripted:q --skill price-histroy\nhi", "did you mean 'price-history'?"),
        ("%%voidbox stage x --model gpt\nhi", "names no known provider"),
        ("%%voidbox stage x --model $NOWHERE\nhi", "$NOWHERE is no variable that holds a model"),
        ("%voidbox attach $NOWHERE", "$NOWHERE is no variable that holds a run"),
        ("%%voidbox stage x --model scripted:q --memory 100\nhi", "not between 192"),
        ("%%voidbox stage x --model scripted:q\n  \n", "has no prompt"),
        ("%%voidbox stage X! --model scripted:q\nhi", "is not a name"),
        ("%%voidbox skill x\n---\na: [\n---\nhi", "not valid YAML"),
    ],
)
def test_trouble_is_one_sentence_and_no_traceback(
    shell: Any, replayed: ModuleType, capsys: Any, tmp_path: Path, source: str, says: str
) -> None:
    """It is raised, so automation stops; it is shown as type and sentence; nothing was started."""
    (tmp_path / "stocks.csv").write_text("x")
    declared(shell)
    with pytest.raises(UserError) as caught:
        cell(shell, source)
    assert says in caught.value.message
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert says in shown
    assert "Traceback" not in shown
    assert len(shown.strip().splitlines()) == 1
    assert not replayed.RUNS


@pytest.mark.parametrize("quiet", ["", " --quiet"])
@pytest.mark.parametrize("source", ["%voidbox run analyst", "%voidbox attach replay-1"])
def test_an_unknown_view_is_refused_before_the_daemon_is_asked(
    shell: Any, replayed: ModuleType, monkeypatch: pytest.MonkeyPatch, source: str, quiet: str
) -> None:
    """Noticed after the submission, it would leave a run that nobody watches."""
    asked: list[str] = []

    class Client(replayed.ReplayClient):  # type: ignore[name-defined,misc]
        async def __aenter__(self) -> Any:
            asked.append(source)
            return await super().__aenter__()

    monkeypatch.setattr("voidbox_lab.magics.commands.AsyncClient", Client)
    monkeypatch.setenv("VOIDBOX_VIEW", "widgets")
    declared(shell)
    with pytest.raises(UserError, match="VOIDBOX_VIEW='widgets' is not one of auto, widget, html, plain"):
        cell(shell, source + quiet)
    assert not asked
    assert not replayed.RUNS
    monkeypatch.setenv("VOIDBOX_VIEW", "plain")
    cell(shell, "%voidbox run analyst --quiet")
    assert asked


def test_a_failed_run_is_the_error_of_its_kind(shell: Any, replayed: ModuleType, capsys: Any) -> None:
    """With the stage and the run in the sentence; --allow-failure returns it instead."""
    declared(shell, "fails")
    with pytest.raises(LimitExceeded, match=r"Stage 'analyst' of run replay-1 failed: .* 300 s"):
        cell(shell, "run = %voidbox run analyst")
    assert "Traceback" not in capsys.readouterr().out
    cell(shell, "run = %voidbox run analyst --allow-failure")
    assert shell.user_ns["run"].stages["analyst"].trouble.cause == "time"


def test_the_text_of_errors_is_clean(shell: Any, replayed: ModuleType, capsys: Any) -> None:
    """Control codes in a name do not reach the terminal."""
    with pytest.raises(UserError):
        cell(shell, "%voidbox run 'a\x1b]0;owned\x07b'")
    assert "\x1b]" not in capsys.readouterr().out


@pytest.mark.anyio
async def test_a_cancelled_cell_cancels_its_run(shell: Any, replayed: ModuleType) -> None:
    """ipykernel cancels the task on the stop button: the run ends, and the cell with a sentence."""
    declared(shell, "endless")
    source = "run = %voidbox run analyst"
    transformed = shell.transform_cell(source)
    task = asyncio.ensure_future(shell.run_cell_async(source, transformed_cell=transformed))
    while not (replayed.RUNS and len(replayed.RUNS["replay-1"].events) > 20):
        await asyncio.sleep(0.01)
    started = asyncio.get_running_loop().time()
    task.cancel()
    result = await task
    assert isinstance(result.error_in_exec, Cancelled)
    assert asyncio.get_running_loop().time() - started < 2
    assert replayed.RUNS["replay-1"].record.state == "cancelled"


@pytest.mark.anyio
async def test_a_cell_stopped_while_it_submits_cancels_its_run(
    shell: Any, replayed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has begun and its id is not yet known here."""
    declared(shell, "endless")
    submit = replayed.ReplayClient.submit

    async def slowly(client: Any, spec: Any) -> Any:
        record = await submit(client, spec)
        await asyncio.sleep(0.3)
        return record

    monkeypatch.setattr(replayed.ReplayClient, "submit", slowly)
    source = "%voidbox run analyst"
    task = asyncio.ensure_future(shell.run_cell_async(source, transformed_cell=shell.transform_cell(source)))
    while not replayed.RUNS:
        await asyncio.sleep(0.01)
    task.cancel()
    assert isinstance((await task).error_in_exec, Cancelled)
    await asyncio.wait([replayed.RUNS["replay-1"].task], timeout=2)
    assert replayed.RUNS["replay-1"].record.state == "cancelled"


@pytest.mark.anyio
async def test_an_attached_cell_only_stops_looking(shell: Any, replayed: ModuleType) -> None:
    """Stopping a cell that attached leaves the run to its owner; %voidbox cancel ends it."""
    declared(shell, "endless")
    client = replayed.ReplayClient()
    record = await client.submit(build("analyst", registry(shell).stage, {}))
    source = f"%voidbox attach {record.id}"
    attached = asyncio.ensure_future(shell.run_cell_async(source, transformed_cell=shell.transform_cell(source)))
    await asyncio.sleep(0.3)
    attached.cancel()
    result = await attached
    assert "goes on" in str(result.error_in_exec)
    assert replayed.RUNS[record.id].record.state == "running"
    source = f"%voidbox cancel {record.id}"
    (await shell.run_cell_async(source, transformed_cell=shell.transform_cell(source))).raise_error()
    await replayed.RUNS[record.id].task
    assert replayed.RUNS[record.id].record.state == "cancelled"


def test_lists_are_data_frames(shell: Any, replayed: ModuleType) -> None:
    """Skills, stages and runs."""
    declared(shell)
    assert list(cell(shell, "%voidbox skills")["skill"]) == ["price-history"]
    assert list(cell(shell, "%voidbox stages")["model"]) == ["scripted:quickstart"]
    cell(shell, "%voidbox run analyst --quiet")
    runs = cell(shell, "%voidbox runs")
    assert list(runs["state"]) == ["succeeded"]
    assert runs["created"].dt.tz is not None


def test_help_is_printed_not_raised(shell: Any, capsys: Any) -> None:
    """Of each subcommand, and of all together."""
    cell(shell, "%voidbox run --help")
    assert "--input FILE" in capsys.readouterr().out
    cell(shell, "%voidbox")
    assert "%%voidbox stage" in capsys.readouterr().out
    for source, says in (("%voidbox run?", "--input FILE"), ("%%voidbox stage?", "--on-failure DOMAIN")):
        cell(shell, source)
        assert says in capsys.readouterr().out
    cell(shell, "%%voidbox?")
    text = capsys.readouterr().out
    for said in ("%%voidbox stage analyst", "%voidbox retry", "data | [quant, sentiment]:text | strategist"):
        assert said in text


def test_a_run_is_tried_again(shell: Any, replayed: ModuleType) -> None:
    """As a new run of the same spec, which the caller gets; one that goes on is not."""
    declared(shell)
    first = cell(shell, "%voidbox run analyst --quiet")
    again = cell(shell, "%voidbox retry replay-1 --quiet")
    assert again.id == "replay-2"
    assert again.spec == first.spec
    assert cell(shell, "%voidbox retry replay-1 --quiet --fresh").spec.fresh
    replayed.RUNS["replay-1"].record = replayed.RUNS["replay-1"].record.model_copy(update={"state": "paused"})
    with pytest.raises(UserError, match="has not ended, it is paused"):
        cell(shell, "%voidbox retry replay-1")


def completions(shell: Any, line: str) -> list[str]:
    """What the shell offers at the end of `line`, as whole words."""
    from IPython.core.completer import provisionalcompleter

    with provisionalcompleter():
        found = list(shell.Completer.completions(line, len(line)))
    return [line[: c.start].rpartition(" ")[2] + c.text for c in found]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("%voidbox ru", "run"),
        ("run = %voidbox att", "attach"),
        ("%voidbox run ana", "analyst"),
        ("%voidbox run analyst --in", "--input"),
        ("%%voidbox st", "stage"),
        ("%%voidbox stage x --skill pri", "price-history"),
        ("%%voidbox stage x --model scr", "scripted:quickstart"),
        ("%%voidbox stage x --model scripted:qu", "scripted:quickstart"),
        ("%%voidbox stage x --mem", "--memory"),
        ("%%voidbox stage x --network mon", "monitored"),
        ("%%voidbox stage x --agent cod", "codex"),
        ("%voidbox skill x --mc", "--mcp"),
        ("%voidbox skill x --cli py", "pypi:"),
        ("%voidbox run analyst --budget us", "usd="),
        ("%%voidbox stage x --on-failure con", "continue"),
        ("%voidbox ret", "retry"),
    ],
)
def test_completions(shell: Any, line: str, offered: str) -> None:
    """Through IPython's own completer."""
    declared(shell)
    assert offered in completions(shell, line)


def test_loading_twice_is_once_and_unloading_leaves_nothing(shell: Any) -> None:
    """Declarations survive a reload; hooks, matchers and magics do not survive an unload."""
    declared(shell)
    load_ipython_extension(shell)
    assert len([t for t in shell.input_transformers_post if type(t).__name__ == "AwaitMagic"]) == 1
    cell(shell, "%reload_ext voidbox_lab")
    assert "analyst" in registry(shell).stages
    unload_ipython_extension(shell)
    unload_ipython_extension(shell)
    assert not [t for t in shell.input_transformers_post if type(t).__name__ == "AwaitMagic"]
    assert help_on_subcommands not in shell.input_transformers_cleanup
    assert "voidbox" not in shell.magics_manager.magics["line"]
    assert "voidbox" not in shell.magics_manager.magics["cell"]
    assert not shell.Completer.custom_matchers


@pytest.mark.anyio
async def test_a_run_that_nobody_awaits_says_so(shell: Any, replayed: ModuleType) -> None:
    """In a plain function, or in the cell that loads the extension, there is no await; nothing begins silently."""
    declared(shell)
    cell(shell, "def go():\n    run = %voidbox run analyst --quiet\n    return run\npending = go()")
    pending = shell.user_ns["pending"]
    assert "has not begun: await it" in repr(pending)
    with pytest.raises(AttributeError, match="asked for 'result'"):
        _ = pending.result
    assert not replayed.RUNS
    assert (await pending).stages["analyst"].state == "succeeded"

"""Spec files as a user writes them: what is wrong, where, and what the run is if nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.spec import (
    Budget,
    Caps,
    EgressLimits,
    Merge,
    Model,
    Origin,
    Policy,
    Retry,
    RunSpec,
    Skill,
    Stage,
    digest_bytes,
)
from voidbox_lab.spec.files import ALL, SpecFile, SpecFileError, read
from voidbox_lab.spec.remote import RemoteRef

HEAD = "kind: {}\nversion: 1\n"
AGENT = "prompt: p, model: scripted:echo"
A, P, W, S = (HEAD.format(kind) for kind in ("agent", "pipeline", "workflow", "sandbox"))
ONE = A + "name: a\nprompt: p\nmodel: scripted:echo\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files that specs name, and another working directory."""
    home = tmp_path / "specs"
    (home / "skills" / "prices").mkdir(parents=True)
    (home / "skills" / "prices" / "SKILL.md").write_text("---\ndescription: d\n---\nRead it.\n")
    (home / "prices.csv").write_text("symbol,price\nMSFT,28.05\nAAPL,192\n")
    (home / "items.json").write_text('[1, {"a": "é"}]')
    (home / "prompt.md").write_text("Say so.\n")
    (home / "empty.md").write_text(" \n")
    (home / "ragged.csv").write_text("a,b\n1\n")
    (home / "object.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return home


def written(here: Path, text: str, **options: Any) -> SpecFile:
    """The spec in `text`."""
    path = here / "f.yaml"
    path.write_text(text)
    return read(path, **options)


def run_of(here: Path, text: str, **options: Any) -> RunSpec:
    """The run of `text`."""
    run = written(here, text, **options).run
    assert run is not None
    return run


def stages_of(run: RunSpec) -> dict[str, Stage]:
    return {s.box.name: s for s in run.stages}


def problems(here: Path, text: str) -> list[str]:
    """The problems of `text`, as lines without the file's name."""
    with pytest.raises(SpecFileError) as e:
        written(here, text)
    return [str(p).replace(f"{here}/", "") for p in e.value.problems]


WRONG = """\
kind: pipeline
version: 1
name: Stocks
stages:
  data:
    run: cat prices.csv
    memry: 256
  analyst:
    model: scripted:echo
    prompt: |
      Which did best?
    memory: 64
    inputs: {a/b: prices.csv, c: nowhere.csv}
  writer:
    prompt_file: nowhere.md
    model: gpt
    skills: [s.md, {name: x}]
    vcpus: "2"
    policy: {netwrk: none}
    on_failure: never
    timeout: 5x
budget: {usd: 0}
flow: data | [analyst, writr]
result: analist
"""


def test_all_that_is_wrong_is_told_at_once(here: Path) -> None:
    """Shape, files, names: each with its line, column and field, in the order of the file."""
    starts = [
        "3:7: name: 'Stocks' is not a name",
        "7:5: stages.data.memry: there is no such field here; did you mean 'memory'?",
        "12:13: stages.analyst.memory: this should be greater than or equal to 192",
        "13:14: stages.analyst.inputs.a/b: input 'a/b' is not a plain file name",
        "13:34: stages.analyst.inputs.c: there is no file nowhere.csv",
        "14:3: stages.writer: this stage is not in the flow",
        "15:18: stages.writer.prompt_file: there is no file nowhere.md",
        "16:12: stages.writer.model: the model 'gpt' names no known provider",
        "17:14: stages.writer.skills.0.file: the skill file s.md cannot be read",
        "17:20: stages.writer.skills.1: a skill has one of file, body, mcp, cli, agent, oci, remote",
        '18:12: stages.writer.vcpus: this must be a whole number; it is "2"',
        "19:14: stages.writer.policy.netwrk: there is no such field here; did you mean 'network'?",
        "20:17: stages.writer.on_failure: the failure domain 'never' is not known",
        "21:14: stages.writer.timeout: '5x' is no duration",
        "22:15: budget.usd: this should be greater than 0",
        "23:7: flow: there is no stage 'writr'; did you mean 'writer'?",
        "24:9: result: there is no stage 'analist'; did you mean 'analyst'?",
    ]
    found = problems(here, WRONG)
    assert len(found) == len(starts), found
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start), line


def test_an_error_is_a_user_error_of_lines(here: Path) -> None:
    """Line, column and field are data too; the same in JSON."""
    (here / "f.json").write_text('{"kind": "agent",\n "version": 1, "prompt": "p",\n "modl": "scripted:echo"}')
    with pytest.raises(UserError) as e:
        read(here / "f.json")
    assert isinstance(e.value, SpecFileError)
    assert e.value.kind == "user"
    assert [(p.line, p.column, p.field) for p in e.value.problems] == [(1, 1, "name"), (3, 2, "modl")]
    assert e.value.message.splitlines()[1].startswith(f"{here}/f.json:1:1: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "1:1: a spec file is a mapping"),
        ("version: 1", "1:1: kind: this field is missing; there are agent, pipeline, workflow, sandbox"),
        ("kind: agnet", "1:7: kind: there is no kind 'agnet'; did you mean 'agent'?"),
        ("kind: [agent]", "1:1: kind: there is no kind ['agent']"),
        ("kind: agent\nname: a\nprompt: p\nmodel: scripted:echo", "1:1: version: this field is missing"),
        (
            "kind: agent\nversion: 2\nname: a\nprompt: p\nmodel: scripted:echo",
            "2:10: version: this must be 1; it is 2",
        ),
        ("kind: agent\nversion: true\nname: a\nprompt: p\nmodel: scripted:echo", "2:10: version: this must be 1"),
        (A + "name: a\nprompt: p", "1:1: an agent needs a model"),
        (A + f"{{{AGENT}}}", "3:34: this is not YAML"),
        (A + "name: 5\nprompt: p\nmodel: scripted:echo", "3:7: name: this must be text"),
        (ONE + "run: ls", "6:1: run: there is no such field"),
        (A + "name: a\nprompt: p\nprompt_file: prompt.md\nmodel: scripted:echo", "1:1: this has prompt and"),
        (
            A + "name: a\nprompt_file: empty.md\nmodel: scripted:echo",
            "4:14: prompt_file: the prompt file empty.md is empty",
        ),
        (ONE + "skills:\n", "6:8: skills: this must be a list; it is empty"),
        (ONE + "retry: 1\non_failure: retry(2)", "1:1: retry stands here and in"),
        (W + "steps: {}", "3:1: steps: dictionary should have at least 1 item"),
        (W + "steps: {a: {}}", "3:9: steps.a: this does nothing; give exactly one of"),
        (W + "steps: {a: {run: ls, agent: x}}", "3:9: steps.a: agent is for agents"),
        (W + f"steps: {{a: {{{AGENT}, env: {{A: b}}}}}}", "3:9: steps.a: env is for commands"),
        (W + "steps: {a: {run: ls, depends_on: [b]}}", "3:35: steps.a.depends_on.0: there is no step 'b'"),
        (
            W + "steps: {a: {run: ls, depends_on: [a]}}",
            "3:22: steps.a.depends_on: these wait for each other: a → a",
        ),
        (
            W
            + "steps: {a: {run: ls, stdin_from: b}, b: {run: ls, depends_on: [c]}, c: {run: ls, depends_on: [a]}}",
            "3:9: steps.a.depends_on: these wait for each other: a → c → b → a",
        ),
        (
            W + "steps: {a: {run: ls}, b: {run: ls, depends_on: [a, a]}}",
            "3:36: steps.b.depends_on: 'a' stands here twice",
        ),
        (W + "steps: {a: {run: ls, needs: [b]}}", "3:22: steps.a.needs: there is no such field here"),
        (W + "steps: {A b: {run: ls}}", "3:9: steps.A b: 'A b' is not a name"),
        (W + 'steps: {a: {run: ls, env: {"A-B": x}}}', "3:28: steps.a.env.A-B: "),
        (W + "steps: {a: {run: ls, env: {A: 1}}}", "3:31: steps.a.env.A: this must be text"),
        (W + "steps: {a: {run: ls, volumes: [a:/etc]}}", "3:32: steps.a.volumes.0.path: '/etc' belongs"),
        (P + "stages: {a: {run: ls}}\nflow: a | [", "4:7: flow: the stages 'a | [' cannot be read"),
        (P + "stages: {a: {run: ls}}\nflow: [a]:txt", "4:10: this is not YAML"),
        (P + "stages: {a: {run: ls}}\nflow: '[a]:txt'", "4:7: flow: there is no reducer 'txt'"),
        (P + "stages: {a: {run: ls}}\nflow: a | a", "4:7: flow: 'a' stands in the flow twice"),
        (
            P + "stages: {a: {run: ls}, b: {run: ls, needs: [a]}}\nflow: a | b",
            "3:37: stages.b.needs: this pipeline has a flow",
        ),
        (P + "stages: {a: {run: ls, map: []}}", "3:23: stages.a.map.items: list should have at least 1"),
        (
            P + "stages: {a: {run: ls, map: prompt.md}}",
            "3:23: stages.a.map.file: prompt.md is neither .json nor .csv",
        ),
        (
            P + "stages: {a: {run: ls, map: object.json}}",
            "3:23: stages.a.map.file: the file object.json holds no JSON array",
        ),
        (
            P + "stages: {a: {run: ls, map: ragged.csv}}",
            "3:23: stages.a.map.file: line 2 of ragged.csv has not as many",
        ),
        (
            P + "stages: {a: {run: ls, map: [1], inputs: {item.json: items.json}}}",
            "3:10: stages.a: map puts item.json",
        ),
        (
            P + "stages: {a: {run: ls, map: [1]}, b: {run: ls, stdin_from: a}}",
            "3:59: stages.b.stdin_from: 'a' is mapped",
        ),
        (P + "stages: {a: {run: ls, map: [1]}, a-1: {run: ls}}", "1:1: "),
        (S + "run: ls\ncommand: [ls]", "1:1: this has run and command"),
        (S + "memory: 0.3GB", "3:9: memory: '0.3GB' is no whole number"),
        (S + "inputs: {a: .}", "3:13: inputs.a: "),
    ],
)
def test_one_thing_wrong(here: Path, text: str, says: str) -> None:
    """One problem, where it is, in words that say what to do."""
    found = problems(here, text)
    assert len(found) == 1, found
    assert found[0].startswith(says), found


def test_an_agent(here: Path) -> None:
    """Everything that an agent's file may say reaches the run, inputs by digest."""
    text = A + (
        "name: analyst\nprompt_file: prompt.md\nskills: [skills/prices, {name: brief, body: Be brief.}]\n"
        "model: openai:gpt@http://127.0.0.1:1/v1\nagent: claude-code\nimage: big\nmemory: 1GB\nvcpus: 2\n"
        "timeout: 1.5h\n"
        "policy: {commands: [ls], rlimits: {processes: 64}}\nbudget: {usd: 0.5, tokens: 100}\n"
        "on_failure: retry(2, 5) continue\ninputs: {p.csv: prices.csv}\nvolumes: [cache:/data, m:/models:ro]\n"
    )
    spec = written(here, text)
    assert spec.run is not None
    (stage,) = spec.run.stages
    box = stage.box
    assert (box.name, spec.run.name, box.prompt) == ("analyst", "analyst", "Say so.\n")
    assert [(s.name, s.body) for s in box.skills] == [("prices", "Read it.\n"), ("brief", "Be brief.\n")]
    assert str(box.model) == "openai:gpt@http://127.0.0.1:1/v1"
    assert (box.agent, box.image, box.memory_mb, box.vcpus, box.timeout_s) == ("claude-code", "big", 1024, 2, 5400)
    assert box.policy.commands == ("ls",)
    assert box.policy.rlimits.processes == 64
    assert box.budget == Budget(usd=0.5, tokens=100)
    assert (box.on_failure, box.retry) == ("continue", Retry(n=2, backoff_s=5))
    assert [str(m) for m in box.volumes] == ["cache:/data", "m:/models:ro"]
    data = (here / "prices.csv").read_bytes()
    assert spec.run.inputs["p.csv"].digest == digest_bytes(data)
    assert spec.files == {digest_bytes(data): here / "prices.csv"}


SKILLS = """\
skills:
  - skills/prices
  - {mcp: mcp-server-time --local-timezone UTC, name: clock, packages: [pypi:mcp-server-time], tools: [now]}
  - {mcp: [server, a b], name: other, env: {A: b}}
  - cli: jq
  - {cli: http, packages: [pypi:httpie], commands: [http, https], body: Use http., description: d}
  - agent: codex
  - {oci: python:3.12-slim, path: /py}
"""
POLICY = """\
image: docker.io/library/python:3.12-slim
mounts: [skills:/data, {source: /srv/out, path: /out, read_only: false}]
policy:
  network: allowlist
  egress: [pypi.org, 10.0.0.0/8:5432]
  egress_limits: {mb: 5}
  commands: [git]
  read: [/etc/ssl]
  write: [/workspace]
  syscalls: [ptrace]
  caps: {memory_mb: 256, pids: 64, cpus: 0.5}
"""


def test_skills_of_every_kind_and_the_whole_policy(here: Path) -> None:
    """As the constructors of `Skill` have them; a skill's other files are to be uploaded."""
    (here / "skills" / "prices" / "rates.csv").write_text("EUR,1.1\n")
    spec = written(here, ONE + SKILLS + POLICY)
    assert spec.run is not None
    box = spec.run.stages[0].box
    prices = Skill.file(here / "skills" / "prices")
    assert box.skills == (
        prices,
        Skill.mcp("clock", ["mcp-server-time", "--local-timezone", "UTC"], packages="pypi:mcp-server-time",
                  tools=["now"]),
        Skill.mcp("other", ["server", "a b"], env={"A": "b"}),
        Skill.cli("jq"),
        Skill.cli("http", "pypi:httpie", commands=["http", "https"], body="Use http.", description="d"),
        Skill.agent("codex"),
        Skill.oci("python:3.12-slim", path="/py"),
    )  # fmt: skip
    assert spec.files == {prices.files["rates.csv"].digest: here / "skills" / "prices" / "rates.csv"}
    assert box.image == "docker.io/library/python:3.12-slim"
    assert [str(m) for m in box.mounts] == [f"{here}/skills:/data:ro", "/srv/out:/out:rw"]
    assert box.policy == Policy(
        network="allowlist", egress=("pypi.org", "10.0.0.0/8:5432"), egress_limits=EgressLimits(mb=5),
        commands=("git",), read=("/etc/ssl",), write=("/workspace",), syscalls=("ptrace",),
        caps=Caps(memory_mb=256, pids=64, cpus=0.5),
    )  # fmt: skip
    command = run_of(here, S + "run: jq .\nskills: [{cli: jq}, {oci: node:22}]\n").stages[0].box
    assert command.skills == (Skill.cli("jq"), Skill.oci("node:22"))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("skill", "says"),
    [
        ("{cli: jq, packages: [jq]}", "7:24: skills.0.packages.0: 'jq' is not a package"),
        ("{cli: jq, name: x}", "7:3: skills.0: name does not go with cli"),
        ("{mcp: server}", "7:3: skills.0: a skill that is written here needs a name"),
        ("{mcp: 'a \"b', name: x}", "7:9: skills.0.mcp: in the command 'a \"b' a quotation mark has no partner"),
        ("{oci: A B}", "7:9: skills.0.oci: 'A B' is not an OCI image"),
        ("{oci: 'a:1', path: /usr/x}", "7:22: skills.0.path: '/usr/x' belongs to the guest's own directory"),
        ("{remote: nowhere}", "7:12: skills.0.remote: 'nowhere' is not a remote skill"),
        ("{remote: a/b@main}", "7:3: skills.0.revision: a remote skill in a file has an exact revision, so that "
         "it stays the same; 'git ls-remote https://github.com/a/b main' says which commit that is now"),
        ("{remote: a/b, revision: v1}", "7:27: skills.0.revision: a remote skill in a file has an exact revision"),
        ("{remote: 'https://u:p@a.example/b.zip'}", "7:12: skills.0.remote: the URL https://a.example/b.zip "),
    ],
)  # fmt: skip
def test_a_wrong_skill_is_told_where_it_is_wrong(here: Path, skill: str, says: str) -> None:
    """The field, its place, and what to write."""
    found = problems(here, ONE + f"skills:\n- {skill}\n")
    assert len(found) == 1, found
    assert found[0].startswith(says), found


def test_other_things_wrong(here: Path) -> None:
    """A folder that is not there; a skill for agents only, of a command."""
    (said,) = problems(here, ONE + "mounts: [nowhere:/data]\n")
    assert said == "6:10: mounts.0: there is no folder nowhere; paths are relative to the spec file"
    (said,) = problems(here, W + "steps: {a: {run: ls, skills: [{mcp: s, name: x}]}}\n")
    assert "a skill of kind 'mcp' is for agents" in said


def test_a_remote_skill_is_fetched_once_or_told_to_be_missing(here: Path) -> None:
    """By its exact revision, wherever that stands, under another name where one is given."""
    asked = []

    def fetch(ref: RemoteRef) -> Skill:
        asked.append(ref)
        origin = Origin(source=ref.source, path=ref.path, revision=ref.revision or "")
        skill = Skill.from_markdown("Do.", name="found", kind="remote", origin=origin)
        return skill.with_files({"a.sh": (b"x", True)})

    other = f"{{remote: acme/s/a, revision: {COMMIT}, name: b}}"
    text = ONE + f"skills: [{{remote: acme/s/a@{COMMIT}}}, {other}]"
    spec = written(here, text, fetch=fetch)
    assert spec.run is not None
    first, second = spec.run.stages[0].box.skills
    assert isinstance(first, Skill)
    assert (first.name, second.name) == ("found", "b")
    assert len(asked) == 1
    assert spec.files == {first.files["a.sh"].digest: b"x"}
    missing = written(here, text, fetch=lambda ref: None)
    assert missing.run is None
    assert [str(ref) for ref in missing.unfetched] == [f"https://github.com/acme/s a @{COMMIT}"]


def test_defaults_are_those_of_the_run(here: Path) -> None:
    """A file that says little declares what Python would."""
    run = run_of(here, ONE)
    from voidbox_lab import VoidBox

    assert run == VoidBox("a", prompt="p", model="scripted:echo").run_spec(name="a", fresh=False)


@pytest.mark.parametrize(
    ("fields", "then", "retry"),
    [
        ("retry: 3", "fail", Retry(n=3)),
        ("retry: {n: 3, backoff: 1m}", "fail", Retry(n=3, backoff_s=60)),
        ("on_failure: {then: skip, retry: 1}", "skip", Retry(n=1)),
        ("on_failure: skip\nretry: 1", "skip", Retry(n=1)),
        ("on_failure: retry(2)", "fail", Retry(n=2)),
    ],
)
def test_failure_domains(here: Path, fields: str, then: str, retry: Retry) -> None:
    box = run_of(here, S + f"run: ls\n{fields}\n").stages[0].box
    assert (box.on_failure, box.retry) == (then, retry)


@pytest.mark.parametrize(
    ("memory", "timeout"),
    [("512", "300"), ("512MB", "300s"), ("0.5GB", "5m"), ("512 MiB", "5 min"), ("'512'", "'300'")],
)
def test_units(here: Path, memory: str, timeout: str) -> None:
    box = run_of(here, S + f"run: ls\nmemory: {memory}\ntimeout: {timeout}\n").stages[0].box
    assert (box.memory_mb, box.timeout_s) == (512, 300)


FOUR = "stages: {a: {run: 'echo a'}, b: {run: 'echo b'}, c: {run: 'echo c'}, d: {run: 'echo d'}}\n"


@pytest.mark.parametrize(
    "flow", ["'a | [b, c]:text | d'", "[a, {fan_out: [b, c], reduce: text}, d]", "['a | [b, c]:text', d]"]
)
def test_a_flow_is_an_expression_or_lists(here: Path, flow: str) -> None:
    run = run_of(here, P + FOUR + f"flow: {flow}\n")
    stages = stages_of(run)
    assert {n: s.needs for n, s in stages.items()} == {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    assert stages["d"].merge == Merge(of=("b", "c"), by="text")
    assert run.result == "d"


def test_the_pipelines_reducer_is_for_all_that_name_none(here: Path) -> None:
    run = run_of(here, P + FOUR + "flow: '[a, b] | [c, d]:first'\nreduce: object\n")
    assert stages_of(run)["c"].merge == Merge(of=("a", "b"), by="object")
    assert run.result == Merge(of=("c", "d"), by="first")


def test_a_graph_by_needs(here: Path) -> None:
    """Declared in any order; what nothing needs is the result, merged as the pipeline says."""
    stages = (
        "stages: {end: {run: ls, needs: [left, right], reduce: text}, left: {run: ls, stdin_from: start}, "
        "right: {run: ls, needs: [start]}, start: {run: ls}, alone: {run: ls}}\n"
    )
    run = run_of(here, P + stages + "reduce: object\n")
    found = stages_of(run)
    assert list(found) == ["start", "left", "right", "end", "alone"]
    assert (found["left"].needs, found["left"].stdin_from, found["left"].merge) == (("start",), "start", None)
    assert found["end"].merge == Merge(of=("left", "right"), by="text")
    assert run.result == Merge(of=("end", "alone"), by="object")
    run = run_of(here, P + stages + "result: right\n")
    assert run.result == "right"


@pytest.mark.parametrize(
    ("items", "values"),
    [
        ("[1, {a: é}]", [b"1", b'{"a": "\xc3\xa9"}']),
        ("items.json", [b"1", b'{"a": "\xc3\xa9"}']),
        ("{file: prices.csv}", [b'{"symbol": "MSFT", "price": "28.05"}', b'{"symbol": "AAPL", "price": "192"}']),
    ],
)
def test_a_map_over_items(here: Path, items: str, values: list[bytes]) -> None:
    """A stage per item, each with its file; whoever needs them gets them merged in order."""
    text = (
        f"stages: {{one: {{{AGENT}, map: {items}, needs: [first], inputs: {{p.csv: prices.csv}}}}, "
        "last: {run: ls, needs: [one, first]}, first: {run: ls}}\n"
    )
    spec = written(here, P + text)
    assert spec.run is not None
    stages = stages_of(spec.run)
    assert list(stages) == ["first", "one-1", "one-2", "last"]
    for number, value in enumerate(values, start=1):
        stage = stages[f"one-{number}"]
        assert spec.files[stage.inputs["item.json"].digest] == value
        assert spec.files[stage.inputs["p.csv"].digest] == here / "prices.csv"
        assert (stage.needs, stage.pool) == (("first",), "one")
    assert spec.run.pools == {"one": 4}
    assert stages["last"].merge == Merge(of=(Merge(of=("one-1", "one-2")), "first"))


def test_a_map_in_a_flow(here: Path) -> None:
    text = "stages: {one: {run: ls, map: {items: [1, 2, 3], concurrency: 2}}, last: {run: ls}}\nflow: one | last\n"
    run = run_of(here, P + text)
    assert stages_of(run)["last"].needs == ("one-1", "one-2", "one-3")
    assert run.pools == {"one": 2}


def test_a_workflow_of_commands(here: Path) -> None:
    """No model anywhere; a line is the shell's, a list is not."""
    text = (
        "name: build\nsteps: {make: {run: 'make | tail', env: {A: b}, memory: 256}, "
        "test: {command: [make, test], depends_on: [make], retry: 2}, sum: {command: [wc], stdin_from: test}}\n"
        "result: test\n"
    )
    run = run_of(here, W + text)
    stages = stages_of(run)
    assert stages["make"].box.command == ("/bin/sh", "-c", "make | tail")
    assert stages["make"].box.env == {"A": "b"}
    assert stages["test"].box.command == ("make", "test")
    assert (stages["sum"].needs, stages["sum"].stdin_from) == (("test",), "test")
    assert not any(s.box.model for s in run.stages)
    assert (run.name, run.result) == ("build", "test")


def test_a_sandbox_may_have_no_command(here: Path) -> None:
    spec = written(here, S + "memory: 1GB\n")
    assert spec.run is None
    assert spec.written.kind == "sandbox"
    assert run_of(here, S + "command: [ls]\n").stages[0].box.command == ("ls",)


def test_models_from_the_caller(here: Path) -> None:
    """One for a stage, one for all others that have one; commands stay without."""
    text = P + f"stages: {{a: {{{AGENT}, map: [1, 2]}}, b: {{{AGENT}}}, c: {{run: ls}}, d: {{run: ls}}}}\n"
    models = {ALL: Model.parse("ollama:all"), "a": Model.parse("ollama:one"), "d": Model.parse("ollama:two")}
    run = run_of(here, text, models=models)
    assert {n: s.box.model and s.box.model.name for n, s in stages_of(run).items()} == {
        "a-1": "one", "a-2": "one", "b": "all", "c": None, "d": "two",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"no stage 'bb' in .* did you mean 'b'\?"):
        run_of(here, text, models={"bb": Model.parse("ollama:x")})


def test_a_long_graph_is_no_trouble(here: Path) -> None:
    """Thousands of stages in a row, declared backwards: order is found without recursion, and soon."""
    steps = {
        f"s{i}": {"command": ["ls"]} | ({"depends_on": [f"s{i - 1}"]} if i else {}) for i in range(1500, -1, -1)
    }
    path = here / "long.json"
    path.write_text(json.dumps({"kind": "workflow", "version": 1, "steps": steps}))
    run = read(path).run
    assert run is not None
    assert [s.box.name for s in run.stages][:3] == ["s0", "s1", "s2"]

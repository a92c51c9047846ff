"""The published JSON Schema: current, said in words, and of one mind with the reader."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.spec.files import KINDS, read
from voidbox_lab.spec.files.check import checked
from voidbox_lab.spec.files.schema import DIALECT, PLACE, schema
from voidbox_lab.spec.files.source import Document, load

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted(p for p in (ROOT / "docs" / "examples").iterdir() if p.suffix in {".yaml", ".json"})
DOCS = (ROOT / "docs" / "specs.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(yaml|json)\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
VALIDATOR = jsonschema.Draft202012Validator(schema())
DATA = [load(path).data for path in EXAMPLES]


def test_the_published_schema_is_current() -> None:
    """``voidbox validate --schema > docs/schema/voidbox-1.schema.json`` renews it."""
    published = json.loads((ROOT / PLACE).read_text(encoding="utf-8"))
    assert published == schema()
    assert published["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(published)


def test_every_field_is_described() -> None:
    """What an editor shows beside a field is the docstring."""
    definitions = schema()["$defs"]
    stage = definitions["StageSpec"]["properties"]
    assert stage["memory"]["description"].startswith("Memory: megabytes")
    assert stage["prompt"]["description"] == "What the agent is to do."
    assert definitions["Budget"]["properties"]["usd"]["description"] == "Dollars at list price."
    for name, definition in definitions.items():
        described = definition.get("anyOf", [definition])[-1] if name.endswith("Mount") else definition
        assert described.get("description"), name


def test_there_are_examples_of_every_kind() -> None:
    assert {data["kind"] for data in DATA} == set(KINDS)
    assert {json.loads(t)["kind"] if k == "json" else t.split()[1] for k, t in BLOCKS} == set(KINDS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_hold(path: Path) -> None:
    """For the schema and for us, with the files that they name."""
    assert not list(VALIDATOR.iter_errors(load(path).data))
    assert read(path).run is not None


@pytest.mark.parametrize(("kind", "text"), BLOCKS)
def test_what_the_documentation_shows_holds(kind: str, text: str, tmp_path: Path) -> None:
    """Each block of docs/specs.md, beside the files of the examples."""
    for source in (ROOT / "docs" / "examples").rglob("*"):
        if source.suffix in {".csv", ".md"}:
            target = tmp_path / source.relative_to(ROOT / "docs" / "examples")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    path = tmp_path / f"block.{kind}"
    path.write_text(text, encoding="utf-8")
    assert not list(VALIDATOR.iter_errors(load(path).data))
    assert read(path).run is not None


def agree(data: Any) -> bool:
    """Whether `data` is well formed for the schema and for the reader, which must say the same."""
    theirs = VALIDATOR.is_valid(data)
    file, problems = checked(Document(Path("f.yaml"), data, {}, {(): (1, 1)}), None)
    ours = file is not None and not problems
    # Text that is an amount may be one out of range, and a flow ill-formed within: no pattern says that.
    beyond = all(p.field.rpartition(".")[2] in {"memory", "timeout", "backoff", "flow"} for p in problems)
    assert theirs == ours or (theirs and problems and beyond), (
        data,
        problems,
        [e.message for e in VALIDATOR.iter_errors(data)],
    )
    return ours


WRONG: list[tuple[str, Any]] = [
    ("nonsense", 1),
    ("version", 2),
    ("version", True),
    ("kind", "agnet"),
    ("kind", None),
    ("name", "A b"),
    ("name", 5),
    ("memory", 64),
    ("memory", "1TB"),
    ("memory", True),
    ("vcpus", 0),
    ("vcpus", "2"),
    ("timeout", 0),
    ("timeout", "5x"),
    ("policy", {"netwrk": "none"}),
    ("policy", {"network": "all"}),
    ("policy", {"rlimits": {"processes": 1}}),
    ("budget", {"usd": 0}),
    ("budget", {"usd": "1"}),
    ("budget", 1),
    ("on_failure", "never"),
    ("on_failure", {"then": "x"}),
    ("retry", 0),
    ("retry", {"backoff": 1}),
    ("inputs", {"a/b": "x"}),
    ("inputs", {"..": "x"}),
    ("inputs", {"a": 5}),
    ("inputs", ["x"]),
    ("env", {"A-B": "x"}),
    ("env", {"A": 1}),
    ("skills", [{"name": "x"}]),
    ("skills", [{"file": "x", "body": "y", "name": "z"}]),
    ("skills", "x"),
    ("skills", [{"cli": "jq", "name": "x"}]),
    ("skills", [{"cli": "jq", "packages": ["jq"]}]),
    ("skills", [{"cli": "jq", "oci": "a:1"}]),
    ("skills", [{"mcp": "server"}]),
    ("skills", [{"mcp": "server", "name": "x", "env": {"A-B": "c"}}]),
    ("skills", [{"mcp": " ", "name": "x"}]),
    ("skills", [{"oci": "A B"}]),
    ("skills", [{"agent": "codex", "packages": ["npm:x"]}]),
    ("skills", [{"file": "x", "revision": "1"}]),
    ("skills", [{"body": "x", "name": "x", "cli": None}]),
    ("model", "gpt"),
    ("model", 5),
    ("agent", "A!"),
    ("image", ""),
    ("prompt", ["x"]),
    ("prompt", ""),
    ("run", 5),
    ("run", ""),
    ("command", "ls"),
    ("command", []),
    ("stages", {}),
    ("stages", {"A": {"run": "ls"}}),
    ("steps", {"a": {}}),
    ("steps", {"a": {"run": "ls", "command": ["ls"]}}),
    ("flow", 5),
    ("flow", []),
    ("flow", [{"fan_in": ["a"]}]),
    ("flow", [{"fan_out": ["a"], "reduce": "x"}]),
    ("reduce", "sum"),
    ("result", "A b"),
    ("needs", "a"),
    ("needs", ["A b"]),
    ("map", {"items": [1], "file": "x"}),
    ("map", {"items": [1], "concurrency": 0}),
    ("map", 5),
    ("depends_on", "a"),
    ("stdin_from", ["a"]),
    ("volumes", ["x"]),
    ("mounts", ["x"]),
    ("mounts", [{"source": "a"}]),
    ("policy", {"egress": ["pypi.org"]}),
    ("policy", {"network": "allowlist"}),
    ("policy", {"syscalls": ["all"]}),
    ("policy", {"caps": {"pids": 1}}),
    ("image", "A B"),
    ("volumes", [{"volume": "a"}]),
]
"""A field and a value that is wrong for it wherever it stands."""


def mappings(data: Any) -> Iterator[dict[str, Any]]:
    """The mappings of a spec that have named fields, outermost first."""
    yield data
    yield from [*data.get("stages", {}).values(), *data.get("steps", {}).values()]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_what_is_wrong_is_wrong_for_both(field: str, value: Any) -> None:
    """In every example, at every place; a field that does not belong there is wrong as well."""
    for data in DATA:
        for i in range(len(list(mappings(data)))):
            damaged = copy.deepcopy(data)
            list(mappings(damaged))[i][field] = value
            assert not agree(damaged)


FIELDS = sorted({f for f, _ in WRONG})
VALUES = st.one_of(
    st.sampled_from([v for _, v in WRONG]),
    st.sampled_from(
        [
            None,
            "x",
            "x.md",
            "scripted:echo",
            512,
            "1GB",
            "5m",
            "skip",
            "retry(2)",
            "retry(2) skip",
            {"then": "skip"},
            [],
            {"n": 2},
            {},
            ["x"],
            [{"name": "a", "body": "b"}],
            [{"cli": "jq"}],
            [{"cli": "http", "packages": ["pypi:httpie==3.2.4"], "commands": ["http"], "body": "b"}],
            [{"oci": "python:3.12-slim", "path": "/py"}, {"cli": "jq", "description": "d"}],
            [{"mcp": ["server", "--x"], "name": "clock", "env": {"A": "b"}, "tools": ["t"]}],
            [{"mcp": "server --x", "name": "clock", "packages": ["npm:@a/b@1.2"]}],
            [{"agent": "codex"}],
            "python:3.12-slim",
            {"network": "allowlist", "egress": ["pypi.org:443"], "write": ["/tmp"], "caps": {"pids": 64}},
            ["/srv/data:/data", {"source": "/a", "path": "/b", "read_only": False}],
            {"usd": 1},
            [["a", "b"], "c"],
            {"A": "b"},
            "cache:/data",
            ["cache:/data:ro"],
            {"items": [1]},
            "a | b",
            "text",
            {"a": {"run": "ls"}},
            1,
            2.5,
            "agent",
            "sandbox",
        ]
    ),
)


@given(st.data())
def test_whatever_is_changed_both_say_the_same(draws: st.DataObject) -> None:
    """Any few fields set to anything, or removed: the schema and the reader agree on what is well formed."""
    data = copy.deepcopy(draws.draw(st.sampled_from(DATA)))
    for _ in range(draws.draw(st.integers(1, 3))):
        place = draws.draw(st.sampled_from([m for m in mappings(data) if isinstance(m, dict)]))
        if place and draws.draw(st.booleans()):
            del place[draws.draw(st.sampled_from(sorted(place)))]
        else:
            place[draws.draw(st.sampled_from(FIELDS))] = copy.deepcopy(draws.draw(VALUES))
        if not all(isinstance(data.get(k, {}), dict) for k in ("stages", "steps")):
            break
    agree(data)

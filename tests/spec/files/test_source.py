"""Text as data that knows its places: which YAML is read, which is refused, and that nothing is unbounded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.errors import UserError
from voidbox_lab.spec.files.problems import MAX_PROBLEMS, SpecFileError
from voidbox_lab.spec.files.source import MAX_BYTES, MAX_VALUES, load, parse

YAML, JSON = Path("f.yaml"), Path("f.json")


def refused(text: str, path: Path = YAML) -> list[str]:
    """The problems of a text, as lines without the file's name."""
    with pytest.raises(SpecFileError) as e:
        parse(path, text)
    return [str(p) for p in e.value.problems]


def test_the_core_schema_of_yaml_1_2() -> None:
    """Words that YAML 1.1 took for booleans, times and dates are text; keys are text in any case."""
    text = "a: [yes, On, 12:30, 2024-01-01, 0o17, 0x1f, 010, 1e3, .5, true, ~, '5', .inf, 1_000]\n1: x\nnull: y\n"
    data = parse(YAML, text).data
    numbers = ["yes", "On", "12:30", "2024-01-01", 15, 31, 10, 1000.0, 0.5, True, None]
    assert data["a"] == [*numbers, "5", ".inf", "1_000"]
    assert (data["1"], data["null"]) == ("x", "y")


def test_places_of_keys_and_values() -> None:
    """Lines and columns count from 1; a collection is told beside its key, whatever it lacks too."""
    document = parse(YAML, "a: 1\nb:\n  c:\n    - x\n    - y: é\n")
    assert str(document.problem(("b", "c", 1, "y"), "m")) == "5:10: b.c.1.y: m"
    assert str(document.problem(("b", "c", 1, "y"), "m", at_key=True)) == "5:7: b.c.1.y: m"
    assert str(document.problem(("b", "c"), "m")) == "3:3: b.c: m"
    assert str(document.problem(("b", "missing"), "m")) == "2:1: b.missing: m"
    assert str(document.problem((), "m")) == "1:1: m"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", ["3:1: a: this key stands here already, in line 1; keep one of them"]),
        ("a: !!python/object:os.system x\n", ["1:4: this is not YAML that is read here: the tag"]),
        ("a: !!str 5\n", ["1:4: this is not YAML that is read here: the tag"]),
        ("a: [1\nb: 2\n", ["2:2: this is not YAML that is read here: while parsing a flow sequence"]),
        ("a: 1\n---\nb: 2\n", ["2:1: this is not YAML that is read here: expected a single document"]),
        ("? [x]\n: 1\n", ["1:3: a key here is a list"]),
        ("a: \x07\n", ["1:4: the character U+0007 has no place here"]),
        ('a: "\\ud800"\n', ["1:4: a: this text has half of a character"]),
        ("a: " + "9" * 500 + "\n", ["1:4: a: this number is too long"]),
        ("a: 1e999\n", ["1:4: a: this number is too large"]),
        ("<<: {a: 1}\na: 2\n<<: {}\n", ["3:1: <<: this key stands here already"]),
        ("", ["1:1: the file is empty"]),
        ("# nothing\n", ["1:1: the file is empty"]),
        ("*x\n", ["1:1: this is not YAML that is read here: found undefined alias"]),
    ],
)
def test_what_is_refused(text: str, says: list[str]) -> None:
    """With its place, and all of it at once where reading can go on."""
    found = refused(text)
    assert len(found) == len(says)
    assert all(line.startswith(wanted) for line, wanted in zip(found, says, strict=True)), found


def test_aliases_are_plain_copies_within_bounds() -> None:
    """What doubles itself, and what holds itself, ends at a bound and soon."""
    assert parse(YAML, "a: &x {b: 1}\nc: *x\n").data == {"a": {"b": 1}, "c": {"b": 1}}
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    began = time.monotonic()
    assert any("values, aliases expanded" in line for line in refused(bomb))
    assert all("nested more than" in line for line in refused("a: &a [*a]\n"))
    assert refused("a: &a [*a, *a, *a]\n")
    assert time.monotonic() - began < 30


def test_bounds_on_size_depth_and_count(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="has more than 512 KiB"):
        load(path)
    for text in ("[" * 60 + "]" * 60, "[" * 5000, "a: " + "{a: " * 60 + "}" * 60):
        assert refused(text), text
    assert "nested" in refused("[" * 100_000, JSON)[0]
    assert str(MAX_VALUES) in refused("[" + "1," * (MAX_VALUES + 1) + "]")[0]


def test_no_more_problems_than_can_be_read() -> None:
    with pytest.raises(SpecFileError) as e:
        parse(YAML, "".join("a: 1\n" for _ in range(100)))
    assert len(e.value.problems) == MAX_PROBLEMS
    assert e.value.lines[-1] == f"f.yaml: … and {99 - MAX_PROBLEMS} more"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="check the path"):
        load(tmp_path / "no.yaml")
    with pytest.raises(UserError, match="directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(SpecFileError, match=r"latin\.yaml:2:7: this is not UTF-8 text"):
        load(tmp_path / "latin.yaml")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load(tmp_path / "bom.yaml").data == {"a": 1}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_json_means_what_json_says(value: Any, ascii_only: bool, indent: Any) -> None:
    """Escapes, surrogates, tabs, line separators: the data is that of the json module."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    if any(
        ord(c) < 32 or 127 <= ord(c) < 160 or ord(c) in {0xFEFF, 0xFFFE, 0xFFFF} for c in text if c not in "\n\t"
    ):
        return  # legal in JSON, and refused with its place: nobody writes it by hand
    assert parse(JSON, text).data == json.loads(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1 2}', "1:9: this is not JSON"),
        ("{\n a: 1}", "2:2: this is not JSON"),
        ('{"a": NaN}', "1:1: this is not JSON: NaN"),
        ('{\n"a": 1,\n\t"a": 2}', "3:2: a: this key stands here already, in line 2"),
        ("", "1:1: this is not JSON"),
    ],
)
def test_json_is_held_to_json(text: str, says: str) -> None:
    assert refused(text, JSON)[0].startswith(says)


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"#%@`,? \n\t0"), max_size=60))
def test_any_text_is_data_or_a_user_error(text: str) -> None:
    for path in (YAML, JSON):
        try:
            parse(path, text)
        except SpecFileError as e:
            found = e.problems
            assert found and all(p.line >= 1 and p.column >= 1 for p in found)  # noqa: PT018 - either is right

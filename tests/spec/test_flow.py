"""The stage expression that notebooks and spec files share: what it means, and what it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Merge, Model, Pipeline, VoidBoxSpec
from voidbox_lab.spec.flow import MAX_DEPTH, Beside, Chain, Flow, assemble, parse_flow, stage_names


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a", "a"),
        ("a b", Beside(("a", "b"))),
        ("[a,b]", Beside(("a", "b"))),
        ("[a b]:text", Beside(("a", "b"), "text")),
        ("a | b", Chain(("a", "b"))),
        ("a|b", Chain(("a", "b"))),
        ("a | [b, c] | d", Chain(("a", Beside(("b", "c")), "d"))),
        ("[b, c] : majority", Beside(("b", "c"), "majority")),
        ("a | [b | c, d]", Chain(("a", Beside((Chain(("b", "c")), "d"))))),
        ("[a, [b, c]:first]:text", Beside(("a", Beside(("b", "c"), "first")), "text")),
        ("[[a, b]]", Beside((Beside(("a", "b")),))),
        ("[a b, c]", Beside((Beside(("a", "b")), "c"))),
    ],
)
def test_stage_expressions(expression: str, expected: Flow) -> None:
    """Sequence, side by side, fan-out, all of them within each other."""
    assert parse_flow(expression) == expected


@pytest.mark.parametrize(
    "expression",
    ["", "  ", "|", "a |", "a | | b", "[a", "a]", "a, b", "[a [b]]", "a [b]", "[]", "[a,]", "[a]:", "a:text", ":"],
)
def test_ill_formed_stage_expressions(expression: str) -> None:
    """One sentence that shows the form."""
    with pytest.raises(UserError, match=r"write it like 'a', 'a \| b'"):
        parse_flow(expression)


@pytest.mark.parametrize(
    ("expression", "says"), [("[a, b]:txt", "no reducer 'txt'"), ("[" * 99 + "a" + "]" * 99, "nested")]
)
def test_what_cannot_be_meant(expression: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_flow(expression)


def written(flow: Flow) -> str:
    """`flow` as an expression."""
    if isinstance(flow, str):
        return flow
    if isinstance(flow, Chain):
        return " | ".join(map(written, flow.parts))
    return "[" + ", ".join(map(written, flow.parts)) + "]" + (f":{flow.by}" if flow.by else "")


def chains(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Flow]:
    """Parts in sequence; a chain within a chain cannot be written, nor need it be."""
    inner = st.lists(parts.filter(lambda p: not isinstance(p, Chain)), min_size=2, max_size=3)
    return inner.map(lambda p: Chain(tuple(p)))


def fans(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Flow]:
    """Parts side by side."""
    by = st.sampled_from([None, "json", "text", "first", "majority", "object"])
    return st.builds(lambda p, b: Beside(tuple(p), b), st.lists(parts, min_size=1, max_size=3), by)


FLOWS = st.recursive(st.sampled_from(["a", "b-1", "c_2"]), lambda p: chains(p) | fans(p), max_leaves=12)


@given(FLOWS)
def test_what_is_written_is_what_is_read(flow: Flow) -> None:
    """Every flow that is not too deep survives being written."""
    assert parse_flow(written(flow)) == flow


@given(st.text(alphabet="ab|[],: \n", max_size=40))
def test_any_text_is_a_flow_or_a_user_error(text: str) -> None:
    """Nothing else comes out, and no name that was not in it."""
    try:
        names = list(stage_names(parse_flow(text)))
    except UserError:
        return
    assert names
    assert all(name in text for name in names)


def lookup(name: str) -> Pipeline:
    return Pipeline.of(VoidBoxSpec(name=name, prompt="p", model=Model.parse("scripted:echo")))


def test_a_flow_becomes_needs_and_merges() -> None:
    """Each part needs the ends of the one before it; the default is for fan-outs that name no reducer."""
    made = assemble(parse_flow("a | [b | c, d]:text | e | [f, g]"), lookup, "majority")
    stages = {s.box.name: s for s in made.stages}
    needs = {name: s.needs for name, s in stages.items()}
    assert needs == {"a": (), "b": ("a",), "c": ("b",), "d": ("a",), "e": ("c", "d"), "f": ("e",), "g": ("e",)}
    assert stages["e"].merge == Merge(of=("c", "d"), by="text")
    assert made.tails == Merge(of=("f", "g"), by="majority")
    assert made.run_spec().result == made.tails


def test_a_stage_stands_once_in_a_flow() -> None:
    with pytest.raises(UserError, match="'a' stands in the pipeline twice"):
        assemble(parse_flow("a | b | a"), lookup)


def test_depth_is_bounded_where_it_says() -> None:
    expression = "[" * MAX_DEPTH + "a" + "]" * MAX_DEPTH
    assert list(stage_names(parse_flow(expression))) == ["a"]

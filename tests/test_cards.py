"""Values show themselves: the same facts in lines and in HTML that can do nothing; pipelines as drawings."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox_lab import Budget, Model, Pipeline, Policy, Run, Skill, VoidBox
from voidbox_lab.cards import Card, Node, Table, graph
from voidbox_lab.spec import BoxFacts, RunRecord, StageRecord, Tokens, Trouble

MODEL = "scripted:quickstart"
HOSTILE = "<script>alert(1)</script>\x1b[31m\"onx='\u202e"


def box(name: str, **options: Any) -> VoidBox:
    """A box."""
    return VoidBox(name, prompt="Look.", model=MODEL, **options)


def failed_run() -> Run:
    """A run of four stages, the third of which failed."""
    pipeline = box("a") | [box("b"), box("c")] | box("d")
    facts = BoxFacts(isolation="tcg", vsock="user", domain="d", image="i", memory_mb=512, vcpus=1, boot_s=2)
    stages = {
        name: StageRecord(
            name=name,
            state=state,  # type: ignore[arg-type]
            model=MODEL,
            model_source="scripted",
            turns=2,
            tokens=Tokens(input=2000, output=30),
            cost_usd=0.0,
            box=facts,
            started_at=1,
            finished_at=4.5,
        )
        for name, state in zip("abcd", ("succeeded", "succeeded", "failed", "skipped"), strict=True)
    }
    trouble = Trouble(kind="limit", message=f"The stage took longer than 300 s. {HOSTILE}")
    return Run(
        RunRecord(
            id="run-1",
            spec=pipeline.run_spec(),
            state="failed",
            created_at=1,
            finished_at=9,
            stages=stages,
            trouble=trouble,
        )
    )


VALUES: list[tuple[Any, tuple[str, ...]]] = [
    (Skill.inline("prices", f"# Read\n{HOSTILE}", description="How to"), ("skill prices", "inline", "How to")),
    (Skill.cli("jq"), ("skill jq", "cli", "deb:jq")),
    (
        Skill.mcp("clock", "mcp-server-time", env={"TZ": "UTC"}),
        ("skill clock", "mcp", "mcp-server-time", "TZ=UTC"),
    ),
    (Skill.agent("codex"), ("skill codex", "agent")),
    (Skill.oci("node:22-slim"), ("skill node", "oci", "/skills/node, read-only")),
    (Policy(), ("policy none", "no way out besides its model", "the image's own")),
    (Policy.allow("pypi.org:443", commands=("git",)), ("policy allowlist", "pypi.org:443", "git")),
    (Policy(network="open", syscalls=("ptrace",)), ("policy open", "system calls ptrace")),
    (Budget.parse("usd=0.5,tokens=20000"), ("budget usd=0.5,tokens=20000", "20,000 of all kinds", "unbounded")),
    (Budget(), ("budget unbounded",)),
    (
        box("analyst", skills=[Skill.cli("jq")], budget="usd=1", on_failure="retry(2) continue"),
        ("box analyst", MODEL, "default policy", "jq (deb:jq)", "usd=1", "continue, tried again 2 times"),
    ),
    (VoidBox("count", command=["wc", "-l"]), ("box count", "wc -l")),
    (box("a") | [box("b"), box("c")] | box("d"), ("pipeline 4 stages", "a → b, c → d", MODEL)),
    (box("one").map(range(60)), ("pipeline 60 stages", "… and 40 more", "one: 4 at once")),
    (failed_run(), ("run run-1 · failed", "limit: The stage took longer", "TCG", "2,030", "3.5")),
]


class Words(HTMLParser):
    """The text of HTML, and what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.attributes = "", set[str](), set[str]()
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._style else data


@pytest.mark.parametrize(("value", "told"), VALUES, ids=lambda v: type(v).__name__)
def test_a_value_tells_the_same_in_lines_and_in_html(value: Any, told: tuple[str, ...]) -> None:
    """And nothing of it is obeyed, by a terminal or a browser."""
    bundle = value._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    plain, html = bundle["text/plain"], Words()
    html.feed(bundle["text/html"])
    for text in told:
        assert text in plain
        for part in re.split(r" · | → |, |: |^(?:skill|policy|budget|box|pipeline|run) ", text):
            assert part in html.text
    assert "script" not in html.tags
    assert not {name for name in html.attributes if name.startswith("on")}
    assert "<script" not in bundle["text/html"]
    for text in (plain, bundle["text/html"]):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert len(plain.splitlines()) < 40


def test_ipython_shows_them() -> None:
    """Through its own formatter, models of pydantic as well."""
    from IPython.core.formatters import DisplayFormatter

    formatter = DisplayFormatter()  # type: ignore[no-untyped-call]
    for value, told in VALUES:
        data, _ = formatter.format(value)  # type: ignore[no-untyped-call]
        assert told[0] in data["text/plain"]
        assert "vbx-card" in data["text/html"]


def test_a_model_of_no_card_is_as_before() -> None:
    """Only what people hold in notebooks has one."""
    assert not hasattr(Model.parse(MODEL), "_repr_mimebundle_")


def test_long_values_are_bounded() -> None:
    """Whatever a card is given."""
    card = Card("x", "n" * 9000, facts=(("f", "v" * 9000),), table=Table(("c",), [("z" * 9000,)] * 500),
                trouble="t" * 9000, texts=(("text", "y" * 90_000),))  # fmt: skip
    assert len(card.plain()) < 5000
    assert len(card.html()) - len(Card("x", "n").html()) < 25_000
    assert "84,000 characters more" in card.html()
    assert "8,400 characters more" in card.html(), "who reads a part knows that it is one"


def nodes(**needs: str) -> list[Node]:
    """``b="a"``: b after a."""
    return [Node(name, tuple(filter(None, before.split()))) for name, before in needs.items()]


def test_layers_are_longest_paths() -> None:
    """A line that passes a layer has a place of its own there."""
    drawing = graph.draw(nodes(a="", b="a", c="b", d="a c"))
    assert drawing is not None
    assert drawing.layers == (("a",), ("b",), ("c",), ("d",))
    assert graph.in_words(drawing) == "a → b → c → d"
    assert len(drawing.lines) == 6, "a to d passes two layers"
    xs = [drawing.places[n][0] for n in "abcd"]
    assert all(x2 - x1 == graph.WIDTH + graph.GAP_X for x1, x2 in pairwise(xs))


def test_neighbours_stand_beside_each_other() -> None:
    """Two chains side by side do not cross."""
    drawing = graph.draw(nodes(a="", b="", c="b", d="a"))
    assert drawing is not None
    assert drawing.places["a"][1] == drawing.places["d"][1]
    assert drawing.places["b"][1] == drawing.places["c"][1]


def test_many_alike_are_one_that_counts() -> None:
    """A map over a thousand items is drawn as few nodes; so is a view's state of the others."""
    items = {f"i{n}": "a" for n in range(1000)}
    drawing = graph.draw(nodes(a="", **items, z=" ".join(items)))
    assert drawing is not None
    assert len(drawing.nodes) == graph.MAX_BESIDE + 2
    last = drawing.nodes[graph.MAX_BESIDE]
    assert graph.label(last) == "993 more"
    assert len(last.members) == 993
    assert graph.counted(["running", "queued", "running"]) == "1 queued, 2 running"


@pytest.mark.parametrize(
    "given_", [nodes(a="", b=""), nodes(**{f"s{n}": f"s{n - 1}" if n else "" for n in range(200)}), []]
)
def test_what_is_no_picture_is_not_drawn(given_: list[Node]) -> None:
    """Stages of which none needs another, or a chain that no screen is wide enough for."""
    assert graph.draw(given_) is None


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=4), min_size=2, max_size=40))
def test_any_pipeline_can_be_drawn(shape: list[list[int]]) -> None:
    """Nodes do not overlap, lines lead from left to right, and all stages are there."""
    given_ = [Node(f"s{n}", tuple({f"s{m % n}" for m in needs}) if n else ()) for n, needs in enumerate(shape)]
    drawing = graph.draw(given_)
    if drawing is None:
        return
    assert sum(max(1, len(node.members)) for node in drawing.nodes) == len(given_)
    assert len(set(drawing.places.values())) == len(drawing.nodes)
    for node in drawing.nodes:
        x, y = drawing.places[node.name]
        assert 0 <= x <= drawing.size[0] - graph.WIDTH
        assert 0 <= y <= drawing.size[1] - graph.HEIGHT
        assert all(drawing.places[need][0] < x for need in node.needs)
    html = Words()
    html.feed(graph.html(drawing, tag="a", anchor='"><b>'))
    assert "b" not in html.tags


def test_pipelines_of_the_api_are_pipelines() -> None:
    """The card's drawing is of the stages as they are composed."""
    pipeline = box("a") | [box("b"), box("c")] | box("d")
    assert isinstance(pipeline, Pipeline)
    drawn = pipeline._card().nodes
    assert [(n.name, n.needs) for n in drawn] == [("a", ()), ("b", ("a",)), ("c", ("a",)), ("d", ("b", "c"))]

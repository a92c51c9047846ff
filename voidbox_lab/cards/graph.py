"""A pipeline's stages as a drawing, from left to right: where each stands, and which lines join them.

Layers are longest paths from the beginning (Sugiyama's first step), the order in each is by the mean of its
neighbours' (his second), and lines that pass a layer are given a place in it. Many alike beside each other are one
node that counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from html import escape

from voidbox_lab.cards.states import glyph

WIDTH, HEIGHT = 156, 42
"""Of a node, in CSS pixels."""
GAP_X, GAP_Y = 40, 10
MAX_BESIDE = 8
"""Most nodes that need, and are needed by, the same ones; of more, the last stands for the rest."""
MAX_NODES = 96
"""Of more than these there is no drawing."""
MAX_LAYERS = 32


@dataclass(frozen=True)
class Node:
    """A stage, or several that are alike."""

    name: str
    needs: tuple[str, ...] = ()
    state: str | None = None
    note: str = ""
    """What stands below its name; without one its state."""
    members: tuple[str, ...] = ()
    """Of several, their names."""


@dataclass(frozen=True)
class Drawing:
    """Nodes with the left upper corner of each; lines as SVG path data."""

    nodes: tuple[Node, ...]
    places: Mapping[str, tuple[float, float]]
    lines: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    """Names, from left to right and from top to bottom."""
    size: tuple[float, float] = (0, 0)
    stands_for: Mapping[str, str] = field(default_factory=dict)
    """A stage that has no node of its own, and the node that counts it."""


def draw(nodes: Sequence[Node]) -> Drawing | None:
    """`nodes`, each after those that it needs; None where nothing hangs together, or too much."""
    return _draw(tuple(nodes)) if any(node.needs for node in nodes) else None


@lru_cache(maxsize=64)
def _draw(stages: tuple[Node, ...]) -> Drawing | None:
    nodes, stands_for = _gathered(stages)
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.name] = 1 + max((depth[need] for need in node.needs), default=-1)
    if len(nodes) > MAX_NODES or max(depth.values()) >= MAX_LAYERS:
        return None
    layers, links = _layered(nodes, depth)
    _ordered(layers, links)
    tallest = max(map(len, layers))
    places = {}
    for x, layer in enumerate(layers):
        top = (tallest - len(layer)) / 2
        for y, name in enumerate(layer):
            places[name] = (x * (WIDTH + GAP_X), (top + y) * (HEIGHT + GAP_Y))
    real = {node.name for node in nodes}
    return Drawing(
        nodes=tuple(nodes),
        places={name: place for name, place in places.items() if name in real},
        lines=tuple(_line(a, b, places, real) for a, b in links),
        layers=tuple(tuple(name for name in layer if name in real) for layer in layers),
        size=(len(layers) * (WIDTH + GAP_X) - GAP_X, tallest * (HEIGHT + GAP_Y) - GAP_Y),
        stands_for=stands_for,
    )


def _gathered(nodes: Sequence[Node]) -> tuple[list[Node], dict[str, str]]:
    needed_by: dict[str, list[str]] = {node.name: [] for node in nodes}
    for node in nodes:
        for need in node.needs:
            needed_by[need].append(node.name)
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for node in nodes:
        alike.setdefault((node.needs, tuple(needed_by[node.name])), []).append(node.name)
    stands_for: dict[str, str] = {}
    for names in alike.values():
        if len(names) > MAX_BESIDE:
            stands_for |= dict.fromkeys(names[MAX_BESIDE - 1 :], names[MAX_BESIDE - 1])
    kept = []
    for node in nodes:
        if stands_for.get(node.name, node.name) != node.name:
            continue
        members = tuple(n for n, first in stands_for.items() if first == node.name)
        needs = tuple(dict.fromkeys(stands_for.get(need, need) for need in node.needs))
        kept.append(replace(node, needs=needs, members=members))
    return kept, stands_for


def _layered(nodes: Sequence[Node], depth: Mapping[str, int]) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Names by layer and links between neighbouring ones; names with a NUL are places that lines pass."""
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    links = []
    for node in nodes:
        layers[depth[node.name]].append(node.name)
    for node in nodes:
        for need in node.needs:
            before = need
            for layer in range(depth[need] + 1, depth[node.name]):
                passed = f"{need}\0{node.name}\0{layer}"
                layers[layer].append(passed)
                links.append((before, passed))
                before = passed
            links.append((before, node.name))
    return layers, links


def _ordered(layers: list[list[str]], links: Sequence[tuple[str, str]]) -> None:
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for a, b in links:
        before.setdefault(b, []).append(a)
        after.setdefault(a, []).append(b)
    # Right, left, and right again: more changes little.
    for steps, beside in ((layers[1:], before), (layers[-2::-1], after), (layers[1:], before)):
        for layer in steps:
            at = {name: i for other in layers for i, name in enumerate(other)}
            means = {n: _mean([at[m] for m in beside.get(n, ())], at[n]) for n in layer}
            layer.sort(key=means.__getitem__)


def _mean(values: Sequence[int], default: float) -> float:
    return sum(values) / len(values) if values else default


def _line(a: str, b: str, places: Mapping[str, tuple[float, float]], real: Iterable[str]) -> str:
    (x1, y1), (x2, y2) = places[a], places[b]
    start = f"M{x1 + (WIDTH if a in real else 0):g} {y1 + HEIGHT / 2:g}"
    if a not in real:  # what passes a layer goes straight through it
        start += f"h{WIDTH}"
    x1, y1, y2 = x1 + WIDTH, y1 + HEIGHT / 2, y2 + HEIGHT / 2
    head = "m-5 -3.5l5 3.5l-5 3.5" if b in real else ""
    return f"{start}C{x1 + GAP_X / 2:g} {y1:g} {x2 - GAP_X / 2:g} {y2:g} {x2:g} {y2:g}{head}"


def in_words(drawing: Drawing) -> str:
    """Its layers on one line: ``data → quant, sentiment → strategist``."""
    nodes = {node.name: node for node in drawing.nodes}
    return " → ".join(", ".join(label(nodes[name]) for name in layer) for layer in drawing.layers)


def label(node: Node) -> str:
    """What stands on a node."""
    return f"{len(node.members)} more" if node.members else node.name


def counted(states: Iterable[str]) -> str:
    """``3 running, 50 succeeded``."""
    return ", ".join(f"{count} {state}" for state, count in sorted(Counter(states).items()))


def html(drawing: Drawing, *, tag: str = "span", anchor: str = "") -> str:
    """The drawing as HTML that reads as a list of stages where styles are stripped.

    Args:
        tag: what a node is: ``span``; ``button``, one of which is reached by Tab and the others by arrow keys; or
            ``a``, which leads to the element with the id `anchor` and its stage's name.
    """
    width, height = drawing.size
    lines = "".join(f'<path d="{line}"/>' for line in drawing.lines)
    nodes = "\n".join(_node(node, drawing.places[node.name], tag, anchor) for node in drawing.nodes)
    about = escape(f"Pipeline: {in_words(drawing)}")
    return (
        f'<div class="vbx-graph" role="group" aria-label="{about}">'
        f'<div class="vbx-canvas" style="width:{width:g}px;height:{height:g}px">'
        f'<svg class="vbx-lines" width="{width:g}" height="{height:g}" aria-hidden="true">{lines}</svg>\n'
        f"{nodes}\n</div></div>"
    )


def _node(node: Node, place: tuple[float, float], tag: str, anchor: str) -> str:
    more = {
        "button": ' type="button" tabindex="-1" aria-pressed="false"',
        "a": f' href="#{escape(anchor + node.name)}"',
    }.get(tag, "")
    note = node.note or node.state or ""
    after = f", after {', '.join(node.needs)}" if node.needs else ""
    title = f"{label(node)}: {note}{after}" if note else f"{label(node)}{after}"
    shape = f'<span class="vbx-glyph" aria-hidden="true">{glyph(node.state)}</span> ' if node.state else ""
    return (
        f'<{tag} class="vbx-node" data-stage="{escape(node.name)}" data-vbx="{escape(node.state or "")}" '
        f'title="{escape(title)}"{more} style="left:{place[0]:g}px;top:{place[1]:g}px">{shape}'
        f'<span class="vbx-name">{escape(label(node))}</span> '
        f'<small class="vbx-below">{escape(note)}</small></{tag}>'
    )

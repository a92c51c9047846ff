"""Names in a spec file that must name something: what is wrong with them, told together with all the rest.

Looks at plain data, of which other parts may be ill-formed, so it takes nothing for granted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any

from voidbox_lab.errors import UserError
from voidbox_lab.spec.files.fields import read_flow
from voidbox_lab.spec.files.problems import Loc, Problem, near
from voidbox_lab.spec.files.source import Document
from voidbox_lab.spec.flow import stage_names

PLACES = {"pipeline": ("stages", "needs"), "workflow": ("steps", "depends_on")}
"""Kind to the field of its stages, and to theirs that names what comes before."""


def dangling(document: Document) -> Iterator[Problem]:
    """Everything that is wrong with how the stages of a pipeline or workflow hang together."""
    data = document.data
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str) or data["kind"] not in PLACES:
        return
    place, before = PLACES[data["kind"]]
    stages = data.get(place)
    if not isinstance(stages, dict):
        return
    what = place.removesuffix("s")
    yield from _unknown(document, ("result",), data.get("result"), stages, what)
    needs: dict[str, list[str]] = {}
    for name, stage in stages.items():
        if isinstance(stage, dict):
            listed = stage.get(before) if isinstance(stage.get(before), list) else []
            for i, need in enumerate(listed or []):
                yield from _unknown(document, (place, name, before, i), need, stages, what)
            source = stage.get("stdin_from")
            yield from _unknown(document, (place, name, "stdin_from"), source, stages, what)
            needs[name] = [n for n in (*(listed or []), source) if isinstance(n, str) and n in stages]
            for need in sorted({n for n in map(str, listed or []) if (listed or []).count(n) > 1}):
                yield document.problem((place, name, before), f"{need!r} stands here twice; once is enough")
            if isinstance(source, str) and isinstance(stages.get(source), dict) and stages[source].get("map"):
                message = f"{source!r} is mapped, so it has many outputs; take it as a need and read its file"
                yield document.problem((place, name, "stdin_from"), message)
    if "flow" in data and data["flow"] is not None:
        yield from _flow(document, data["flow"], stages)
    elif circle := _circle(needs):
        message = f"these wait for each other: {' → '.join(circle)}; cut the circle in one place"
        yield document.problem((place, circle[0], before), message)


def _flow(document: Document, flow: Any, stages: Mapping[str, Any]) -> Iterator[Problem]:
    for name, stage in stages.items():
        for field in ("needs", "reduce"):
            if isinstance(stage, dict) and stage.get(field):
                message = f"this pipeline has a flow, which says so; remove either the flow or all {field!r}"
                yield document.problem(("stages", name, field), message, at_key=True)
    try:
        names = list(stage_names(read_flow(flow)))
    except UserError:
        return  # told as ill-formed
    seen: set[str] = set()
    for name in names:
        if name in seen:
            message = (
                f"{name!r} stands in the flow twice; each stage runs once, so name the second one differently"
            )
            yield document.problem(("flow",), message)
        elif name not in stages:
            yield document.problem(("flow",), f"there is no stage {name!r}{near(name, stages)}")
        seen.add(name)
    for name in stages:
        if name not in seen:
            yield document.problem(
                ("stages", name), "this stage is not in the flow; add or remove it", at_key=True
            )


def _unknown(document: Document, loc: Loc, name: Any, stages: Mapping[str, Any], what: str) -> Iterator[Problem]:
    if isinstance(name, str) and name not in stages:
        yield document.problem(loc, f"there is no {what} {name!r}{near(name, stages)}")


def order(needs: Mapping[str, list[str]]) -> list[str]:
    """The names so that each comes after its needs, otherwise as declared. Those in a circle are left out."""
    number = {name: i for i, name in enumerate(needs)}
    waits = {name: set(before) for name, before in needs.items()}
    after: dict[str, list[str]] = {name: [] for name in needs}
    for name, before in waits.items():
        for need in before & after.keys():
            after[need].append(name)
    ready = [number[name] for name, before in waits.items() if not before]
    names, found = list(needs), []
    heapq.heapify(ready)
    while ready:
        name = names[heapq.heappop(ready)]
        found.append(name)
        for following in after[name]:
            waits[following].discard(name)
            if not waits[following]:
                heapq.heappush(ready, number[following])
    return found


def _circle(needs: Mapping[str, list[str]]) -> list[str]:
    """Names that need each other around, the first one again at the end; empty if there are none."""
    left = needs.keys() - set(order(needs))
    if not left:
        return []
    # Each of those left needs one of those left: following that must come back.
    path = [next(name for name in needs if name in left)]
    seen: set[str] = set()
    while path[-1] not in seen:
        seen.add(path[-1])
        path.append(next(need for need in needs[path[-1]] if need in left))
    circle = path[path.index(path[-1]) :]
    return circle[::-1]  # as the work would flow: each before what needs it

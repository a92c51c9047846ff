"""How stages hang together, in one line: ``a | [b, c | d]:text | e``.

``|`` is sequence, brackets are a fan-out, ``:REDUCER`` after one says how its outputs are merged, and names with
nothing between them (``a b``) are side by side too. Only names and their order: what a stage is, others know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import get_args

from voidbox_lab.errors import UserError
from voidbox_lab.spec.merge import Reducer
from voidbox_lab.spec.pipeline import Pipeline

MAX_DEPTH = 32
"""Brackets within brackets; far more than anybody reads."""
_TOKEN = re.compile(r"\s*([|\[\],:]|[^\s|\[\],:]+)")
_MARKS = frozenset("|[],:")
_FORM = "write it like 'a', 'a | b' or 'a | [b, c] | d'"


@dataclass(frozen=True)
class Chain:
    """Parts one after the other."""

    parts: tuple[Flow, ...]


@dataclass(frozen=True)
class Beside:
    """Parts side by side, and how their outputs are merged; None: as the pipeline's default says."""

    parts: tuple[Flow, ...]
    by: Reducer | None = None


Flow = str | Chain | Beside
"""A stage by its name, or parts."""


def parse_flow(expression: str) -> Flow:
    """The flow that `expression` says.

    Raises:
        UserError: it is not of the form above, or names an unknown reducer.
    """
    reader = _Reader(expression)
    flow = reader.chain()
    if reader.next is not None:
        raise reader.trouble()
    return flow


def stage_names(flow: Flow) -> Iterator[str]:
    """The names in `flow`, in order; one that stands there twice comes twice."""
    if isinstance(flow, str):
        yield flow
    else:
        for part in flow.parts:
            yield from stage_names(part)


def assemble(flow: Flow, lookup: Callable[[str], Pipeline], default: Reducer = "json") -> Pipeline:
    """The pipeline of `flow`, each name by `lookup`; fan-outs that name no reducer merge by `default`.

    Raises:
        UserError: a stage that stands in it twice, or whatever `lookup` raises.
    """
    if isinstance(flow, str):
        return lookup(flow)
    parts = [assemble(part, lookup, default) for part in flow.parts]
    if isinstance(flow, Beside):
        return Pipeline.beside(parts, reduce=flow.by or default)
    return reduce(Pipeline.then, parts)


def reducer(name: str) -> Reducer:
    """The reducer `name`.

    Raises:
        UserError: there is none of that name.
    """
    for known in get_args(Reducer):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UserError(f"There is no reducer {name!r}; the reducers are {', '.join(get_args(Reducer))}.")


class _Reader:
    """Recursive descent: chain := group ('|' group)*, group := NAME+ | '[' chain (',' chain)* ']' [':' NAME]."""

    def __init__(self, expression: str) -> None:
        self._whole = expression.strip()
        self._tokens = _TOKEN.findall(expression)
        self._at = 0
        self._depth = 0

    @property
    def next(self) -> str | None:
        """The token that comes next; None at the end."""
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def trouble(self) -> UserError:
        """What to say of the token that comes next."""
        if not self._whole:
            return UserError(f"The list of stages is empty; {_FORM}.")
        if self.next in {None, "|"} and (self._at == 0 or self._tokens[self._at - 1] == "|"):
            return UserError(f"The list of stages has a '|' with no stage on one side; {_FORM}.")
        where = "its end" if self.next is None else repr(self.next)
        shown = self._whole if len(self._whole) <= 80 else self._whole[:79] + "…"
        return UserError(f"The stages {shown!r} cannot be read at {where}; {_FORM}.")

    def chain(self) -> Flow:
        parts = [self._group()]
        while self._take("|"):
            parts.append(self._group())
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def _group(self) -> Flow:
        if self._take("["):
            return self._fan_out()
        names: list[str] = []
        while self.next is not None and self.next not in _MARKS:
            names.append(self.next)
            self._at += 1
        if not names:
            raise self.trouble()
        return names[0] if len(names) == 1 else Beside(tuple(names))

    def _fan_out(self) -> Flow:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UserError(f"The list of stages has brackets nested more than {MAX_DEPTH} deep; flatten them.")
        first = self._at
        branches = [self.chain()]
        while self._take(","):
            branches.append(self.chain())
        if not self._take("]"):
            raise self.trouble()
        self._depth -= 1
        by = reducer(self._word()) if self._take(":") else None
        only = branches[0]
        if len(branches) == 1 and isinstance(only, Beside) and self._tokens[first] != "[":
            return Beside(only.parts, by)  # [a b] is [a, b]
        return Beside(tuple(branches), by)

    def _word(self) -> str:
        word = self.next
        if word is None or word in _MARKS:
            raise self.trouble()
        self._at += 1
        return word

    def _take(self, mark: str) -> bool:
        found = self.next == mark
        self._at += found
        return found

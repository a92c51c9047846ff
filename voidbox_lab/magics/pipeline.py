"""The stage expression of ``%voidbox run``: ``a``, ``a b`` (side by side), ``a | b``, ``a | [b, c] | d``.

Each group needs the whole group before it. Only names and their order: what a stage is, the registry knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Pipeline, RunSpec, VoidBoxSpec
from voidbox_lab.spec.run import InputFile

_TOKEN = re.compile(r"\s*([|\[\],]|[^\s|\[\],]+)")


def groups(expression: str) -> list[list[str]]:
    """The groups of stage names, in order.

    Raises:
        UserError: the expression is not of the form above.
    """
    found: list[list[str]] = []
    for part in expression.split("|"):
        names = _group(part)
        if not names:
            where = "is empty" if not expression.strip() else "has a '|' with no stage on one side"
            raise UserError(f"The list of stages {where}; write it like 'a', 'a | b' or 'a | [b, c] | d'.")
        found.append(names)
    return found


def _group(part: str) -> list[str]:
    tokens = _TOKEN.findall(part)
    bracketed = tokens[:1] == ["["] and tokens[-1:] == ["]"]
    inner = tokens[1:-1] if bracketed else tokens
    names = [t for t in inner if t != ","]
    if any(t in "[]" for t in inner) or (not bracketed and "," in inner):
        raise UserError(
            f"The stages {part.strip()!r} cannot be read; write it like 'a', 'a | b' or 'a | [b, c] | d'."
        )
    return names


def build(
    order: Sequence[Sequence[str]],
    lookup: Callable[[str], VoidBoxSpec],
    inputs: dict[str, InputFile],
    **options: Any,
) -> RunSpec:
    """The run of `order`, with each stage by `lookup`. `options` are those of `Pipeline.run_spec`.

    Raises:
        UserError: a stage named twice, or whatever `lookup` raises.
    """
    parts = [Pipeline.beside([Pipeline.of(lookup(name)) for name in group]) for group in order]
    return reduce(Pipeline.then, parts).run_spec(inputs=inputs, **options)

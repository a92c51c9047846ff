"""One stage over many items: a stage per item, expanded before anything runs, so that the run says what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from voidbox_lab.errors import UserError
from voidbox_lab.spec.digest import digest_bytes
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.merge import Merge
from voidbox_lab.spec.pipeline import Pipeline
from voidbox_lab.spec.run import MAX_STAGES
from voidbox_lab.spec.validate import validated
from voidbox_lab.spec.voidbox import VoidBoxSpec

ITEM = "item.json"
"""Name of the item's file in ``/workspace/input``."""
NOTE = "Your item is the JSON value in /workspace/input/item.json."


def item_bytes(value: Any) -> bytes:
    """The bytes of an item's file.

    Raises:
        UserError: it has no JSON form.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as e:
        raise UserError(f"The item {str(value)[:80]!r} cannot be mapped over: it has no JSON form ({e}).") from e


def item_file(data: bytes) -> InputFile:
    """What names such bytes in a spec."""
    return InputFile(digest=digest_bytes(data), size=len(data))


def expand(
    box: VoidBoxSpec,
    items: Sequence[InputFile],
    concurrency: int,
    inputs: Mapping[str, InputFile] | None = None,
) -> Pipeline:
    """`box` once per item, as stages ``NAME-1``, ``NAME-2``, …, side by side, `concurrency` at work at most.

    Each finds its item in ``/workspace/input/item.json``, beside the files of `inputs`; their answers are
    merged as a JSON array in the items' order.

    Raises:
        UserError: no items, too many for a run, or a concurrency below 1.
    """
    if not items:
        raise UserError(f"There is nothing to map {box.name!r} over; give at least one item.")
    if len(items) > MAX_STAGES:
        raise UserError(
            f"{len(items)} items are more than the {MAX_STAGES} stages of a run; map over slices of them."
        )
    if concurrency < 1:
        raise UserError(f"A concurrency of {concurrency} lets nothing run; give 1 or more.")
    prompt = f"{box.prompt}\n\n{NOTE}" if box.command is None else ""
    stages = []
    for number, item in enumerate(items, start=1):
        one = validated(VoidBoxSpec, **{**dict(box), "name": f"{box.name}-{number}", "prompt": prompt})
        stages.append(
            Pipeline.of(one, inputs={**(inputs or {}), ITEM: item}, pool=box.name, pools={box.name: concurrency})
        )
    # An array for one item as well, which `beside` would leave alone.
    return replace(Pipeline.beside(stages), tails=validated(Merge, of=tuple(s.tails for s in stages)))

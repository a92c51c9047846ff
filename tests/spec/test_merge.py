"""Merging outputs: what counts as JSON in them."""

from __future__ import annotations

import json

import pytest

from voidbox_lab.errors import CommandFailed
from voidbox_lab.spec.merge import Merge, merged


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ("[1, 2]", [1, 2]),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("\n```\n[1]\n```\n", [1]),
        ('Here:\n```json\n{"a": 1}\n```', 'Here:\n```json\n{"a": 1}\n```'),
        ('```json\n{"a": 1}\n```\n```json\n{"b": 2}\n```', '```json\n{"a": 1}\n```\n```json\n{"b": 2}\n```'),
        ("```json\n{oops}\n```", "```json\n{oops}\n```"),
        ("```json\n[]", "```json\n[]"),
        ("AAPL", "AAPL"),
    ],
)
def test_json_alone_or_in_one_fence_is_json(output: str, value: object) -> None:
    """Models fence JSON, asked or not; text around it makes it text."""
    assert json.loads(merged(Merge(of=("x",)), {"x": output})) == [value]


def test_objects_are_merged_out_of_fences() -> None:
    """And what is none is an error that names its stage."""
    merge = Merge(of=("x", "y"), by="object")
    assert json.loads(merged(merge, {"x": '```json\n{"a": 1}\n```', "y": '{"b": 2}'})) == {"a": 1, "b": 2}
    with pytest.raises(CommandFailed, match="stage 'y'"):
        merged(merge, {"x": '{"a": 1}', "y": "none"})

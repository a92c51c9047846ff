"""Where the specs of runs differ, field by field. Pure; what runs did is in `across` and in their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voidbox_lab.spec import RunRecord

MAX_DIFFERENCES = 200
WIDTH = 160
"""Characters of a value that are shown: around the first at which texts differ."""
ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """A field that is not the same in all of them."""

    path: str
    """``analyst.model.name``: of a stage, by its name; ``budget.usd``: of the run."""
    values: tuple[str, ...]
    """One for each run, in their order; `ABSENT` where it has no such field."""


def differences(records: Sequence[RunRecord], *, limit: int = MAX_DIFFERENCES) -> tuple[list[Difference], int]:
    """The fields in which the specs of `records` differ, at most `limit` of them, and how many there are."""
    flat = [_flat(record) for record in records]
    paths = dict.fromkeys(path for fields in flat for path in fields)
    found = []
    for path in paths:
        values = [fields.get(path, ABSENT) for fields in flat]
        if len(set(values)) > 1:
            found.append((path, values))
    return [Difference(path, _excerpts(values)) for path, values in found[:limit]], len(found)


def _flat(record: RunRecord) -> dict[str, str]:
    """Dotted path to value, as text; stages by name, for their order says nothing."""
    spec = record.spec.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    fields: dict[str, str] = {}
    for stage in spec.pop("stages"):
        box = stage.pop("box")
        name = box.pop("name")
        # A stage without any other field is there all the same.
        _flatten(f"{name}.needs", stage.pop("needs", []), fields)
        _flatten(name, {**box, **stage}, fields)
    for key, value in spec.items():
        _flatten(key, value, fields)
    return fields


def _flatten(path: str, value: Any, into: dict[str, str]) -> None:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            _flatten(f"{path}.{key}", below, into)
    elif isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value):
        # Skills: by name, so that one more is one difference.
        for item in value:
            _flatten(f"{path}.{item['name']}", {k: v for k, v in item.items() if k != "name"}, into)
    elif isinstance(value, list):
        into[path] = ", ".join(str(item) for item in value) or ABSENT
    else:
        into[path] = ABSENT if value in (None, {}, "") else str(value)


def _excerpts(values: Sequence[str]) -> tuple[str, ...]:
    shortest = min(map(len, values))
    at = next((i for i in range(shortest) if len({value[i] for value in values}) > 1), shortest)
    start = max(0, at - WIDTH // 4) if max(map(len, values)) > WIDTH else 0
    return tuple(_excerpt(value, start) for value in values)


def _excerpt(value: str, start: int) -> str:
    cut = value[start : start + WIDTH]
    return ("…" if start and cut else "") + cut + ("…" if len(value) > start + WIDTH else "")

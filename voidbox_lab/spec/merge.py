"""How the outputs of a fan-out become one input: a tree of stage names with a named reducer at each node.

Outputs were written by guests: a reducer reads JSON and text, and executes nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field

from voidbox_lab.errors import CommandFailed
from voidbox_lab.spec.base import Name, Spec

Reducer = Literal["json", "text", "first", "majority", "object"]
"""``json``: an array in declared order, null where there is no output. ``text``: the outputs under headings.
``first``: the first there is. ``majority``: the most frequent, the earliest of equals. ``object``: JSON objects
merged, later ones win."""


class Merge(Spec):
    """Outputs to be merged. The order of `of` is the order of the result, whatever finished first."""

    # Fail fast: a list of thousands of wrong parts would be an error of megabytes, and seconds of work.
    of: Annotated[tuple[Name | Merge, ...], Field(min_length=1, max_length=4096), FailFast()]
    by: Reducer = "json"

    @property
    def leaves(self) -> tuple[str, ...]:
        """The stages it names, in order."""
        return tuple(name for part in self.of for name in ([part] if isinstance(part, str) else part.leaves))


def merged(merge: Merge, outputs: Mapping[str, str]) -> str:
    """The outputs as one text: JSON for ``json`` and ``object``, else as the stages wrote them.

    Args:
        outputs: stage to output, without the stages that have none.

    Raises:
        CommandFailed: cause ``reduce``: ``object`` over an output that is no JSON object, or ``first`` or
            ``majority`` over nothing.
    """
    text = _text(_value(merge, outputs))
    # A half surrogate, which a guest may write as an escape, has no UTF-8.
    return text.encode(errors="replace").decode()


def is_json(merge: Merge) -> bool:
    """Whether what `merged` gives is JSON for certain."""
    return merge.by in {"json", "object"}


def _value(merge: Merge, outputs: Mapping[str, str]) -> Any:
    parts = [(p if isinstance(p, str) else "merged", _part(p, outputs)) for p in merge.of]
    there = [(name, value) for name, value in parts if value is not None]
    match merge.by:
        case "json":
            return [value for _, value in parts]
        case "text":
            return "\n\n".join(f"## {name}\n\n{_text(value)}" for name, value in there)
        case "object":
            return _object(there)
    if not there:
        raise CommandFailed(
            f"There is nothing for the reducer {merge.by!r}: none of {', '.join(merge.leaves)} has an output.",
            cause="reduce",
        )
    if merge.by == "first":
        return there[0][1]
    counts = Counter(_text(value).strip() for _, value in there)
    most = max(counts.values())
    return next(value for _, value in there if counts[_text(value).strip()] == most)


def _part(part: str | Merge, outputs: Mapping[str, str]) -> Any:
    if isinstance(part, Merge):
        return _value(part, outputs)
    return _parsed(outputs[part]) if part in outputs else None


def _parsed(output: str) -> Any:
    """A JSON array or object as what it is; everything else as text, without the line break at the end of what
    programs print."""
    text = _unfenced(output)
    if text.lstrip()[:1] in {"[", "{"}:
        try:
            return json.loads(text, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            pass
    return output.removesuffix("\n")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is beyond what a number holds")
    return value


def _unfenced(output: str) -> str:
    """What stands in the fence, if the output is one fenced block of JSON: models fence it, asked or not."""
    opening, _, rest = output.strip().partition("\n")
    if opening.rstrip() in {"```", "```json"} and rest.endswith("```") and rest.count("```") == 1:
        return rest[:-3]
    return output


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _object(parts: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parts:
        if not isinstance(value, dict):
            raise CommandFailed(
                f"The reducer 'object' needs JSON objects, and stage {name!r} answered something else; "
                "ask for a JSON object alone, or use the reducer 'json'.",
                cause="reduce",
            )
        found |= value
    return found

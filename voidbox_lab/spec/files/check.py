"""A document's data as one of the kinds of spec file, or everything that is wrong with its fields."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from voidbox_lab.spec.files.problems import Loc, Problem, near
from voidbox_lab.spec.files.reading import Reading
from voidbox_lab.spec.files.shape import KINDS, File
from voidbox_lab.spec.files.source import Document

_WANTED = {
    "string_type": "text, a number or a word like true in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping, name: value",
    "model_type": "a mapping, field: value",
}
"""pydantic's kinds of error to what should stand there."""
_KEY = "[key]"


def checked(document: Document, reading: Reading | None) -> tuple[File | None, list[Problem]]:
    """The file `document` holds, and what is wrong with it; None if anything of its shape is.

    Args:
        reading: looks at the files that it names; None: they are not looked at.
    """
    data = document.data
    if not isinstance(data, dict):
        return None, [document.problem((), "a spec file is a mapping; begin with 'kind:' and 'version: 1'")]
    kind = data.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        what = "this field is missing" if kind is None else f"there is no kind {kind!r}"
        return None, [document.problem(("kind",), what + near(str(kind), KINDS))]
    try:
        # Through JSON: its strict mode takes lists for tuples, and nothing else for anything.
        return model.model_validate_json(json.dumps(data), strict=True, context=reading), []
    except ValidationError as e:
        return None, [_problem(document, model, error) for error in e.errors(include_url=False)]


def _problem(document: Document, model: type[BaseModel], error: ErrorDetails) -> Problem:
    loc: Loc = tuple(part for part in error["loc"] if part != _KEY)
    at_key = _KEY in error["loc"]
    if error["type"] == "extra_forbidden":
        known = fields(model, loc[:-1])
        return document.problem(loc, f"there is no such field here{near(str(loc[-1]), known)}", at_key=True)
    return document.problem(loc, _message(error), at_key=at_key)


def _message(error: ErrorDetails) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return "this field is missing"
    if kind == "literal_error":
        return f"this must be {context['expected']}; it is {_shown(given)}"
    if wanted := _WANTED.get(kind):
        return f"this must be {wanted}; it is {_shown(given)}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return f"this {message}" if message.startswith("should ") else message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def fields(model: type[BaseModel], loc: Loc) -> list[str]:
    """The names of the fields that the mapping at `loc` of a `model` may have; none where it has free keys."""
    found: list[Any] = [model]
    for part in loc:
        found = [inner for outer in found for inner in _within(outer, part)]
    return [name for one in found if _is_model(one) for name in one.model_fields]


def _within(annotation: Any, part: str | int) -> Iterator[Any]:
    """What stands at `part` of a value of this type."""
    if _is_model(annotation):
        if part in annotation.model_fields:
            yield from _alternatives(annotation.model_fields[part].annotation)
    elif get_origin(annotation) is dict:
        yield from _alternatives(get_args(annotation)[1])
    elif get_origin(annotation) in {tuple, list}:
        yield from _alternatives(get_args(annotation)[0])


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in {Union, types.UnionType}:
        for part in get_args(annotation):
            yield from _alternatives(part)
    else:
        yield annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)

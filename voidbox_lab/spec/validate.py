"""Turns pydantic's error lists into the one sentence a user reads."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from voidbox_lab.errors import UserError

M = TypeVar("M", bound=BaseModel)


def sentence(model: str, error: ValidationError) -> str:
    """One sentence for the first problem of `error`, with a count of the rest."""
    problems = error.errors(include_url=False)
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return f"{model}{f' option {where!r}' if where else ''}: {message}{more}."


def validated(model: type[M], /, **fields: Any) -> M:
    """`model(**fields)`, with a `UserError` of one sentence instead of a `ValidationError`."""
    try:
        return model(**fields)
    except ValidationError as e:
        raise UserError(sentence(model.__name__, e)) from e

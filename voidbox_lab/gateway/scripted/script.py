"""A script: what a scripted model says, as data. The format of the YAML files in ``scripts/``.

Texts are Jinja2 templates. They see the captures by name, ``prompt`` (all the user's text), ``results``
(the texts of all tool results so far), ``result`` (the latest) and ``turn``. What comes from a box is
only ever a value there, never a template.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from voidbox_lab.spec.base import Frozen


def _compiles(value: str) -> str:
    try:
        re.compile(value)
    except re.error as e:
        raise ValueError(f"{value!r} is no regular expression: {e}") from e
    return value


Pattern = Annotated[str, AfterValidator(_compiles)]


class Capture(Frozen):
    """A value taken out of the conversation, for templates."""

    source: Literal["prompt", "results"] = Field("results", alias="from")
    regex: Pattern | None = None
    """Its first group, or the whole match; the last match counts."""
    json_lines: str | None = None
    """All JSON objects, one a line, that have this key; the last object with the same value of it counts."""
    default: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Capture:
        if (self.regex is None) == (self.json_lines is None):
            raise ValueError("a capture has either 'regex' or 'json_lines'")
        return self


class When(Frozen):
    """When a turn is taken; all that is given must hold."""

    turn: int | None = None
    """Number of the model's earlier turns in the conversation."""
    captured: str | None = None
    missing: str | None = None


class WriteFile(Frozen):
    """Input of the role ``write``."""

    path: str
    content: str


class UseTool(Frozen):
    """A call of a tool by its name."""

    name: str
    """As the client offers it. MCP tools are ``mcp__SERVER__TOOL``, however the client has them."""
    input: str = "{}"
    """A JSON object."""


class Use(Frozen):
    """A tool call, by role, when the client's own tool of that role is called, or by name. Exactly one is given;
    what is empty once it is filled in is no call."""

    shell: str | None = None
    write: WriteFile | None = None
    tool: UseTool | None = None

    @model_validator(mode="after")
    def _one(self) -> Use:
        if [self.shell, self.write, self.tool].count(None) != 2:
            raise ValueError("a tool call has one of 'shell', 'write' and 'tool'")
        return self


class Turn(Frozen):
    """One answer of the model. Without `when`, it is taken at its own place in the list; the last also after."""

    when: When | None = None
    say: str = ""
    use: tuple[Use, ...] = ()
    pace_s: float = Field(0.0, ge=0, le=60)
    """Seconds between two words of a stream."""
    delay_s: float = Field(0.0, ge=0, le=3600)
    """Seconds before the answer begins."""
    hang: bool = False
    """Never answer."""
    cut_after: int | None = Field(None, ge=0)
    """Break the stream after so many words."""


class Failure(Frozen):
    """The first `calls` model calls of a stage fail."""

    calls: int = Field(ge=1)
    status: int = Field(529, ge=400, le=599)
    message: str = "The scripted model is overloaded."
    retry_after_s: float | None = None


class Script(Frozen):
    """A whole script."""

    description: str = ""
    captures: dict[str, Capture] = Field(default_factory=dict)
    fail: Failure | None = None
    turns: tuple[Turn, ...] = Field(min_length=1)

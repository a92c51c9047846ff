"""Decides what a scripted model answers: picks the turn, fills in the captures, finds the tools. No I/O."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from voidbox_lab.errors import UserError
from voidbox_lab.gateway.scripted.conversation import Conversation, Tool
from voidbox_lab.gateway.scripted.script import Capture, Script, Turn, Use
from voidbox_lab.gateway.scripted.toolbox import (
    named_tool,
    shell_input,
    shell_tool,
    write_by_shell,
    write_input,
    write_tool,
)

CHARACTERS_PER_TOKEN = 4
MAX_OBJECTS = 1000

# Sandboxed, because a script may come from somebody else as a notebook does. Output is model text, not HTML.
_ENVIRONMENT = SandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True)
class Call:
    """A tool call to be rendered."""

    id: str
    tool: Tool
    input: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the model says: text, then calls. Token counts are estimates."""

    text: str
    calls: tuple[Call, ...]
    turn: Turn
    input_tokens: int
    output_tokens: int


def play(script: Script, name: str, conversation: Conversation) -> Reply:
    """The script's answer.

    Raises:
        UserError: the script has no turn for this, or a template asks for what is not there.
    """
    captured = {k: v for k, c in script.captures.items() if (v := _capture(c, conversation)) is not None}
    turn = _pick(script, name, conversation, captured)
    context = {
        **captured,
        "prompt": conversation.prompt,
        "results": conversation.results,
        "result": conversation.results[-1] if conversation.results else "",
        "turn": conversation.turn,
    }
    try:
        text = _template(turn.say).render(context).strip("\n") if turn.say else ""
        calls = tuple(c for use in turn.use if (c := _call(use, conversation.tools, context)) is not None)
    except (TemplateError, TypeError, ValueError, ArithmeticError, KeyError) as e:
        raise UserError(
            f"The script {name!r} cannot fill in turn {conversation.turn}: {e}.", cause="script"
        ) from e
    size = len(text) + sum(len(json.dumps(c.input)) for c in calls)
    return Reply(
        text,
        calls,
        turn,
        max(1, conversation.size // CHARACTERS_PER_TOKEN),
        max(1, size // CHARACTERS_PER_TOKEN),
    )


def _pick(script: Script, name: str, conversation: Conversation, captured: Mapping[str, Any]) -> Turn:
    for place, turn in enumerate(script.turns):
        when = turn.when
        if when is None:
            last = place == len(script.turns) - 1
            if place == conversation.turn or (last and conversation.turn > place):
                return turn
        elif (
            when.turn in {None, conversation.turn}
            and (when.captured is None or when.captured in captured)
            and (when.missing is None or when.missing not in captured)
        ):
            return turn
    raise UserError(f"The script {name!r} has no answer for turn {conversation.turn}.", cause="script")


def _capture(capture: Capture, conversation: Conversation) -> Any:
    texts = [conversation.prompt] if capture.source == "prompt" else conversation.results
    if capture.json_lines is not None:
        return _objects(capture.json_lines, texts) or capture.default
    assert capture.regex is not None
    found = [m for text in texts for m in re.finditer(capture.regex, text, re.MULTILINE)]
    if not found:
        return capture.default
    return found[-1].group(1) if found[-1].re.groups else found[-1].group()


def _objects(key: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        for line in text.splitlines():
            if not line.lstrip().startswith("{"):
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict) and key in value and len(found) < MAX_OBJECTS:
                found[json.dumps(value[key])] = value
    return list(found.values())


def _call(use: Use, tools: Sequence[Tool], context: Mapping[str, Any]) -> Call | None:
    """The call, by the client's tool; None if it offers none for it (a side request without tools)."""
    if use.tool is not None:
        name, given = (_template(t).render(context) for t in (use.tool.name, use.tool.input))
        if not name or not tools:
            return None
        value = json.loads(given)
        if not isinstance(value, dict):
            raise ValueError(f"the input of {name} is no JSON object")
        return Call(_id(), named_tool(tools, name), value)
    if use.write is not None:
        path, content = (_template(t).render(context) for t in (use.write.path, use.write.content))
        if tool := write_tool(tools):
            return Call(_id(), tool, write_input(tool, path, content))
        command = write_by_shell(path, content)
    else:
        command = _template(use.shell or "").render(context)
    shell = shell_tool(tools)
    return Call(_id(), shell, shell_input(shell, command)) if shell else None


def _id() -> str:
    return secrets.token_hex(10)


@lru_cache(maxsize=256)
def _template(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)

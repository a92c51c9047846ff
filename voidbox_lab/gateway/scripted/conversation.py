"""What a request says, whatever API it speaks: who said what so far, and which tools are offered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from voidbox_lab.gateway.api import Api

Json = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A tool the client offers."""

    name: str
    schema: Json
    """JSON schema of its input."""
    kind: str = "function"
    """``function``, or what else the Responses API has: ``custom``, ``local_shell``."""
    namespace: str | None = None


@dataclass(frozen=True)
class Conversation:
    """A request, understood."""

    turn: int
    """Number of the model's turns so far."""
    prompt: str
    """All text of the user, in order."""
    results: tuple[str, ...]
    """The texts of all tool results, in order."""
    tools: tuple[Tool, ...]
    size: int
    """Characters of the request, the base of the token estimate."""


def understand(api: Api, body: Json) -> Conversation:
    """Read a request of any API. Parts of unknown shape are passed over."""
    read = {Api.MESSAGES: _messages, Api.CHAT: _chat, Api.OLLAMA: _chat, Api.RESPONSES: _responses}[api]
    turn, prompts, results = read(body)
    return Conversation(turn, "\n".join(prompts), tuple(results), tuple(_tools(api, body)), len(json.dumps(body)))


def _messages(body: Json) -> tuple[int, list[str], list[str]]:
    turn, prompts, results = 0, [], []
    for message in _dicts(body.get("messages")):
        if message.get("role") == "assistant":
            turn += 1
            continue
        if isinstance(message.get("content"), str):
            prompts.append(message["content"])
        for block in _dicts(message.get("content")):
            if block.get("type") == "tool_result":
                results.append(_text(block.get("content")))
            elif block.get("type") == "text":
                prompts.append(str(block.get("text", "")))
    return turn, prompts, results


def _chat(body: Json) -> tuple[int, list[str], list[str]]:
    turn, prompts, results = 0, [], []
    for message in _dicts(body.get("messages")):
        match message.get("role"):
            case "assistant":
                turn += 1
            case "tool":
                results.append(_text(message.get("content")))
            case "user":
                prompts.append(_text(message.get("content")))
    return turn, prompts, results


def _responses(body: Json) -> tuple[int, list[str], list[str]]:
    turn, prompts, results = 0, [], []
    if isinstance(body.get("input"), str):
        return 0, [body["input"]], []
    models_turn = False
    for item in _dicts(body.get("input")):
        kind = str(item.get("type", "message"))
        if kind.endswith("_call_output"):
            results.append(_text(item.get("output")))
        elif kind == "message" and item.get("role") == "user":
            prompts.append(_text(item.get("content")))
        # One turn of the model is a run of items here: reasoning, calls, text.
        models = kind.endswith("_call") or kind == "reasoning" or item.get("role") == "assistant"
        turn += models and not models_turn
        models_turn = models
    return turn, prompts, results


def _tools(api: Api, body: Json) -> Iterable[Tool]:
    for tool in _dicts(body.get("tools")):
        kind = str(tool.get("type", "function"))
        if api is Api.MESSAGES:
            yield Tool(str(tool.get("name", "")), _dict(tool.get("input_schema")))
        elif api is Api.RESPONSES:
            if kind == "namespace":
                for inner in _dicts(tool.get("tools")):
                    yield Tool(
                        str(inner.get("name", "")),
                        _dict(inner.get("parameters")),
                        namespace=str(tool.get("name", "")),
                    )
            else:
                yield Tool(str(tool.get("name", kind)), _dict(tool.get("parameters")), kind)
        else:
            function = _dict(tool.get("function"))
            yield Tool(str(function.get("name", "")), _dict(function.get("parameters")))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return _text(content.get("content", content.get("output", "")))
    parts = (p.get("text") for p in _dicts(content))
    return "\n".join(p for p in parts if isinstance(p, str))


def _dicts(value: Any) -> list[Json]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}

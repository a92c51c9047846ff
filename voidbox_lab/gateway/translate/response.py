"""A whole Chat Completions answer as an Anthropic Messages answer."""

from __future__ import annotations

import json
from typing import Any

from voidbox_lab.gateway.upstream import UpstreamBroke

Json = dict[str, Any]

_STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def to_message(answer: Json, model: str) -> Json:
    """The Messages answer that says the same.

    Raises:
        UpstreamBroke: it is no Chat Completions answer.
    """
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        raise UpstreamBroke(
            "The model server's answer holds no message; is it a Chat Completions server?", cause="shape"
        )
    content: list[Json] = []
    if isinstance(message.get("content"), str) and message["content"]:
        content.append({"type": "text", "text": message["content"]})
    calls = message.get("tool_calls")
    for i, call in enumerate(calls if isinstance(calls, list) else []):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            content.append(
                {
                    "type": "tool_use",
                    "id": str(call.get("id") or f"call_{i}"),
                    "name": str(function.get("name", "")),
                    "input": arguments(function.get("arguments")),
                }
            )
    called = any(b["type"] == "tool_use" for b in content)
    return {
        "id": str(answer.get("id") or "msg_0"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason(first.get("finish_reason"), called=called),
        "stop_sequence": None,
        "usage": usage(answer.get("usage")),
    }


def stop_reason(finish: Any, *, called: bool) -> str:
    """Why the model stopped. Some servers say ``stop`` after tool calls; the calls tell the truth."""
    return "tool_use" if called and finish in {None, "stop"} else _STOPS.get(str(finish), "end_turn")


def usage(value: Any) -> Json:
    """Token counts in Anthropic's words, where input excludes what came from a cache."""
    value = value if isinstance(value, dict) else {}
    details = value.get("prompt_tokens_details")
    prompt = _count(value.get("prompt_tokens"))
    cached = min(prompt, _count(details.get("cached_tokens"))) if isinstance(details, dict) else 0
    return {
        "input_tokens": prompt - cached,
        "output_tokens": _count(value.get("completion_tokens")),
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }


def arguments(text: Any) -> Json:
    """A call's arguments as an object; what is not JSON is kept visible, so the tool can complain about it."""
    if isinstance(text, dict):
        return text
    try:
        value = json.loads(text or "{}")
    except (TypeError, ValueError, RecursionError):
        return {"invalid_json": str(text)}
    return value if isinstance(value, dict) else {"value": value}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0

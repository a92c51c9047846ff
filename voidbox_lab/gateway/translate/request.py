"""An Anthropic Messages request as a Chat Completions request."""

from __future__ import annotations

import json
from typing import Any

from voidbox_lab.errors import UserError

Json = dict[str, Any]


def to_chat(body: Json, *, openai_itself: bool = False) -> Json:
    """The Chat Completions request that asks the same.

    `openai_itself`: OpenAI's own API calls the bound on the answer ``max_completion_tokens``; every
    compatible server understands the older ``max_tokens``.

    Raises:
        UserError: the request is not a Messages request.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError("The request has no list of messages.", cause="bad-request")
    out: Json = {"model": body.get("model"), "messages": []}
    if system := _text(body.get("system")):
        out["messages"].append({"role": "system", "content": system})
    for message in messages:
        out["messages"] += _assistant(message) if message.get("role") == "assistant" else _user(message)
    if isinstance(body.get("max_tokens"), int):
        out["max_completion_tokens" if openai_itself else "max_tokens"] = body["max_tokens"]
    for ours, theirs in (("temperature", "temperature"), ("top_p", "top_p"), ("stop_sequences", "stop")):
        if body.get(ours) is not None:
            out[theirs] = body[ours]
    if tools := [_tool(t) for t in body.get("tools") or [] if isinstance(t, dict) and t.get("name")]:
        out["tools"] = tools
        choice = body.get("tool_choice")
        if isinstance(choice, dict):
            out["tool_choice"] = _choice(choice)
            if choice.get("disable_parallel_tool_use") is True:
                out["parallel_tool_calls"] = False
    if body.get("stream") is True:
        out |= {"stream": True, "stream_options": {"include_usage": True}}
    return out


def _text(content: Any) -> str:
    """The text of a string or of a list of blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(str(b.get("text", "")) for b in content if isinstance(b, dict) and b.get("type") == "text")


def _user(message: Json) -> list[Json]:
    """Tool results come first, as messages of their own: they must follow the calls they answer."""
    content = message.get("content")
    if not isinstance(content, list):
        return [{"role": "user", "content": _text(content)}]
    results: list[Json] = []
    parts: list[Json] = []
    for block in content:
        if not isinstance(block, dict):
            continue
        if block.get("type") == "tool_result":
            text = _text(block.get("content"))
            text = f"Error: {text}" if block.get("is_error") else text
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": text})
            inner = block.get("content")
            parts += [p for b in inner if (p := _image(b))] if isinstance(inner, list) else []
        elif block.get("type") == "text":
            parts.append({"type": "text", "text": str(block.get("text", ""))})
        elif image := _image(block):
            parts.append(image)
    if not parts:
        return results
    if all(p["type"] == "text" for p in parts):
        # Many local servers read only strings.
        return [*results, {"role": "user", "content": "\n".join(p["text"] for p in parts)}]
    return [*results, {"role": "user", "content": parts}]


def _image(block: Any) -> Json | None:
    source = block.get("source") if isinstance(block, dict) and block.get("type") == "image" else None
    if not isinstance(source, dict) or source.get("type") != "base64":
        return None
    url = f"data:{source.get('media_type', 'image/png')};base64,{source.get('data', '')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _assistant(message: Json) -> list[Json]:
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    calls = [
        {
            "id": str(b.get("id", "")),
            "type": "function",
            "function": {"name": str(b.get("name", "")), "arguments": json.dumps(b.get("input") or {})},
        }
        for b in blocks
        if isinstance(b, dict) and b.get("type") == "tool_use"
    ]
    out: Json = {"role": "assistant", "content": _text(content) or None}
    if calls:
        out["tool_calls"] = calls
    elif out["content"] is None:
        out["content"] = ""
    return [out]


def _tool(tool: Json) -> Json:
    return {
        "type": "function",
        "function": {
            "name": tool["name"],
            "description": tool.get("description", ""),
            "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
        },
    }


def _choice(choice: Json) -> Any:
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return {"any": "required", "none": "none"}.get(str(choice.get("type")), "auto")

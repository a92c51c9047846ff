"""Closes the ways out of a box that a model provider itself would open.

A box without a network could still send data anywhere by asking the provider to fetch a URL: hosted
tools (web search and fetch, remote MCP servers) and images or files given by URL. Hosted tools are
left out of the request, so that agents that always offer them keep working; content by URL is refused,
because leaving it out would change what was asked. Tools that run in the box stay. So are the fields left out by
which a router (OpenRouter, say) is asked for other models or for searches of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from voidbox_lab.errors import UserError
from voidbox_lab.gateway.api import Api

_MESSAGES_LOCAL = ("custom", "bash_", "text_editor_", "computer_", "memory_", "tool_search_")
_OPENAI_LOCAL = frozenset(
    {"function", "custom", "local_shell", "shell", "apply_patch", "computer", "namespace", "tool_search"}
)
_HOSTED_FIELDS = {
    Api.MESSAGES: ("mcp_servers", "container"),
    Api.CHAT: ("web_search_options",),
    Api.RESPONSES: ("background", "prompt"),
    Api.OLLAMA: (),
}
_ROUTER_FIELDS = ("models", "fallbacks", "route", "plugins", "search_parameters")
_URL_KEYS = frozenset({"url", "image_url", "file_url", "video_url", "audio_url"})
_MAX_DEPTH = 64


def guarded(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    """`body` without hosted tools.

    Raises:
        UserError: content is given by URL, or nested absurdly deep.
    """
    out = {k: v for k, v in body.items() if k not in _HOSTED_FIELDS[api] and k not in _ROUTER_FIELDS}
    tools = out.get("tools")
    if isinstance(tools, list):
        out["tools"] = [t for t in tools if isinstance(t, dict) and _runs_in_the_box(api, t)]
        if not out["tools"]:
            del out["tools"]
            out.pop("tool_choice", None)
    # All of them, whichever the API reads: a lenient server passes over the others.
    for part in _parts([out.get(key) for key in ("messages", "input", "system", "instructions")], 0):
        for key in _URL_KEYS & part.keys():
            value = part[key]
            value = value.get("url") if isinstance(value, dict) else value
            if isinstance(value, str) and not value.startswith("data:"):
                raise UserError(
                    "Content by URL is not carried: the provider would fetch it, and this box has no network; "
                    "send the data itself.",
                    cause="url-content",
                )
    return out


def _runs_in_the_box(api: Api, tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    if api is Api.MESSAGES:
        return kind is None or (isinstance(kind, str) and kind.startswith(_MESSAGES_LOCAL))
    return kind in _OPENAI_LOCAL


def _parts(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Messages, their content parts and what is in these; of any type, since servers guess a missing one.

    Tool inputs are data of the agent's own and are not looked into.
    """
    if depth > _MAX_DEPTH:
        raise UserError("The request is nested too deeply.", cause="depth")
    if isinstance(value, list):
        for item in value:
            yield from _parts(item, depth + 1)
    elif isinstance(value, dict):
        yield value
        for key in ("content", "output", "source"):
            yield from _parts(value.get(key), depth + 1)

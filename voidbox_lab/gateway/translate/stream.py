"""A streamed Chat Completions answer as Anthropic's stream of events, piece by piece.

Anthropic's blocks come one after the other, Chat's tool calls may interleave. Text and the first tool
call stream as they come; all after it is held back until the end, where each piece has its own block.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from voidbox_lab.gateway.translate.response import stop_reason, usage

Json = dict[str, Any]


@dataclass
class _Call:
    id: str
    name: str
    arguments: str = ""


class StreamTranslator:
    """Feed chunks, get events; `finish` once at the end."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._started = False
        self._index = -1
        self._open: str | None = None
        """What kind of block is open: ``text``, ``tool`` or none."""
        self._live: Any = None
        """The index of the tool call that streams."""
        self._calls: dict[Any, _Call] = {}
        self._late = ""
        self._finish: Any = None
        self._usage: Json = usage(None)

    @property
    def ended(self) -> bool:
        """Whether the server has said why it stopped."""
        return self._finish is not None

    def feed(self, chunk: Json) -> list[Json]:
        """The events that `chunk` gives rise to."""
        out = [] if self._started else [self._start(chunk)]
        if isinstance(chunk.get("usage"), dict):
            self._usage = usage(chunk["usage"])
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return out
        delta = choice.get("delta")
        if isinstance(delta, dict):
            if isinstance(text := delta.get("content"), str) and text:
                out += self._text(text)
            calls = delta.get("tool_calls")
            for piece in calls if isinstance(calls, list) else []:
                if isinstance(piece, dict):
                    out += self._call(piece)
        if choice.get("finish_reason") is not None:
            self._finish = choice["finish_reason"]
        return out

    def finish(self) -> list[Json]:
        """The last events: held back calls, the reason for the end, the counts."""
        out = [] if self._started else [self._start({})]
        out += self._close()
        if self._late:
            text, self._late = self._late, ""
            out += [*self._text(text), *self._close()]
        for index, call in self._calls.items():
            if index != self._live:
                out += [*self._open_call(call), self._json(call.arguments or "{}"), *self._close()]
        delta = {"stop_reason": stop_reason(self._finish, called=bool(self._calls)), "stop_sequence": None}
        return [*out, {"type": "message_delta", "delta": delta, "usage": self._usage}, {"type": "message_stop"}]

    def _start(self, chunk: Json) -> Json:
        self._started = True
        message: Json = {
            "id": str(chunk.get("id") or "msg_0"),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # Chat tells its counts at the end; agents add these up, so they must be numbers.
            "usage": usage(None),
        }
        return {"type": "message_start", "message": message}

    def _text(self, text: str) -> list[Json]:
        out: list[Json] = []
        if self._open == "tool":
            # The live call may still go on, and a closed block cannot: text after it waits for the end.
            self._late += text
            return out
        if self._open is None:
            out += self._begin("text", {"type": "text", "text": ""})
        return [*out, self._delta({"type": "text_delta", "text": text})]

    def _call(self, piece: Json) -> list[Json]:
        index = piece.get("index", 0)
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        out: list[Json] = []
        call = self._calls.get(index)
        if call is None:
            call = _Call(str(piece.get("id") or f"call_{index}"), str(function.get("name") or ""))
            first = not self._calls
            self._calls[index] = call
            if first:
                self._live = index
                out += [*self._close(), *self._open_call(call)]
        text = function.get("arguments")
        text = json.dumps(text) if isinstance(text, dict) else text
        if isinstance(text, str) and text:
            call.arguments += text
            if index == self._live:
                out.append(self._json(text))
        return out

    def _open_call(self, call: _Call) -> list[Json]:
        return self._begin("tool", {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})

    def _begin(self, kind: str, block: Json) -> list[Json]:
        self._index += 1
        self._open = kind
        return [{"type": "content_block_start", "index": self._index, "content_block": block}]

    def _json(self, text: str) -> Json:
        return self._delta({"type": "input_json_delta", "partial_json": text})

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Json]:
        if self._open is None:
            return []
        self._open = None
        return [{"type": "content_block_stop", "index": self._index}]

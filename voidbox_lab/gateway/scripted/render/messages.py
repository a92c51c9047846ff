"""Anthropic Messages (streaming: Messages API, "Streaming Messages")."""

from __future__ import annotations

import json

from voidbox_lab.gateway.scripted.render.base import Json, Renderer
from voidbox_lab.gateway.sse import encode_event

_PIECE = 64


class MessagesRenderer(Renderer):
    """See `Renderer`."""

    def whole(self) -> bytes:
        """A message object."""
        text = [{"type": "text", "text": self.reply.text}] if self.reply.text else []
        calls = [{**self._tool_use(i), "input": c.input} for i, c in enumerate(self.reply.calls)]
        return json.dumps(self._message([*text, *calls], self._stop(), self.reply.output_tokens)).encode()

    def head(self) -> bytes:
        """message_start, and the start of the text block if there is text."""
        out = self._event({"type": "message_start", "message": self._message([], None, 1)})
        out += self._event({"type": "ping"})
        if self.reply.text:
            block = {"type": "text", "text": ""}
            out += self._event({"type": "content_block_start", "index": 0, "content_block": block})
        return out

    def word(self, text: str) -> bytes:
        """A text delta."""
        delta = {"type": "text_delta", "text": text}
        return self._event({"type": "content_block_delta", "index": 0, "delta": delta})

    def tail(self) -> bytes:
        """Tool use blocks, message_delta, message_stop."""
        out = self._event({"type": "content_block_stop", "index": 0}) if self.reply.text else b""
        first = 1 if self.reply.text else 0
        for i, call in enumerate(self.reply.calls):
            start = {"type": "content_block_start", "index": first + i, "content_block": self._tool_use(i)}
            out += self._event(start)
            text = json.dumps(call.input)
            for at in range(0, len(text), _PIECE):
                delta = {"type": "input_json_delta", "partial_json": text[at : at + _PIECE]}
                out += self._event({"type": "content_block_delta", "index": first + i, "delta": delta})
            out += self._event({"type": "content_block_stop", "index": first + i})
        stop = {"stop_reason": self._stop(), "stop_sequence": None}
        usage = {"output_tokens": self.reply.output_tokens}
        out += self._event({"type": "message_delta", "delta": stop, "usage": usage})
        return out + self._event({"type": "message_stop"})

    def _stop(self) -> str:
        return "tool_use" if self.reply.calls else "end_turn"

    def _tool_use(self, i: int) -> Json:
        call = self.reply.calls[i]
        return {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.tool.name, "input": {}}

    def _message(self, content: list[Json], stop: str | None, output_tokens: int) -> Json:
        usage = {
            "input_tokens": self.reply.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
        }
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": usage,
        }

    @staticmethod
    def _event(data: Json) -> bytes:
        return encode_event(data, name=data["type"])

"""OpenAI Chat Completions."""

from __future__ import annotations

import json
import time

from voidbox_lab.gateway.scripted.render.base import Json, Renderer
from voidbox_lab.gateway.sse import encode_event


class ChatRenderer(Renderer):
    """See `Renderer`. The stream ends with a usage chunk, which the gateway hides from who did not ask."""

    def whole(self) -> bytes:
        """A chat.completion object."""
        message: Json = {"role": "assistant", "content": self.reply.text or None}
        if self.reply.calls:
            message["tool_calls"] = self._calls()
        choice = {"index": 0, "message": message, "finish_reason": self._finish()}
        return json.dumps({**self._base("chat.completion"), "choices": [choice], "usage": self._usage()}).encode()

    def head(self) -> bytes:
        """The role."""
        return self._chunk({"role": "assistant", "content": ""})

    def word(self, text: str) -> bytes:
        """A content delta."""
        return self._chunk({"content": text})

    def tail(self) -> bytes:
        """Tool calls, the reason for the end, counts."""
        out = b"".join(self._chunk({"tool_calls": [{"index": i, **c}]}) for i, c in enumerate(self._calls()))
        out += self._chunk({}, self._finish())
        out += encode_event({**self._base("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        return out + b"data: [DONE]\n\n"

    def _calls(self) -> list[Json]:
        return [
            {
                "id": f"call_{c.id}",
                "type": "function",
                "function": {"name": c.tool.name, "arguments": json.dumps(c.input)},
            }
            for c in self.reply.calls
        ]

    def _finish(self) -> str:
        return "tool_calls" if self.reply.calls else "stop"

    def _usage(self) -> Json:
        i, o = self.reply.input_tokens, self.reply.output_tokens
        return {"prompt_tokens": i, "completion_tokens": o, "total_tokens": i + o}

    def _base(self, kind: str) -> Json:
        return {"id": f"chatcmpl-{self.id}", "object": kind, "created": int(time.time()), "model": self.model}

    def _chunk(self, delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return encode_event({**self._base("chat.completion.chunk"), "choices": [choice]})

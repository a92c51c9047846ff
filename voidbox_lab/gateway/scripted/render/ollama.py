"""Ollama's /api/chat (docs/api.md, "Generate a chat completion")."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import ClassVar

from voidbox_lab.gateway.scripted.render.base import Json, Renderer


class OllamaRenderer(Renderer):
    """See `Renderer`. A stream is lines of JSON."""

    stream_type: ClassVar[str] = "application/x-ndjson"

    def whole(self) -> bytes:
        """One object."""
        return json.dumps(self._line(self._message(self.reply.text), done=True)).encode()

    def head(self) -> bytes:
        """Nothing: the first line is the first word."""
        return b""

    def word(self, text: str) -> bytes:
        """A line with a piece of the text."""
        return json.dumps(self._line({"role": "assistant", "content": text})).encode() + b"\n"

    def tail(self) -> bytes:
        """The calls, then the line that ends it."""
        calls = json.dumps(self._line(self._message(""))).encode() + b"\n" if self.reply.calls else b""
        return calls + json.dumps(self._line({"role": "assistant", "content": ""}, done=True)).encode() + b"\n"

    def _message(self, text: str) -> Json:
        calls = [{"function": {"name": c.tool.name, "arguments": c.input}} for c in self.reply.calls]
        return {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})

    def _line(self, message: Json, *, done: bool = False) -> Json:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line: Json = {"model": self.model, "created_at": now, "message": message, "done": done}
        if done:
            counts = {"prompt_eval_count": self.reply.input_tokens, "eval_count": self.reply.output_tokens}
            line |= {"done_reason": "stop", "total_duration": 1, "eval_duration": 1, **counts}
        return line

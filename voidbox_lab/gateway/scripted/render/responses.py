"""OpenAI Responses, as far as codex reads it."""

from __future__ import annotations

import json
import time
from typing import Any

from voidbox_lab.gateway.scripted.player import Call, Reply
from voidbox_lab.gateway.scripted.render.base import Json, Renderer
from voidbox_lab.gateway.sse import encode_event


class ResponsesRenderer(Renderer):
    """See `Renderer`."""

    def __init__(self, reply: Reply, model: str) -> None:
        super().__init__(reply, model)
        self._sequence = 0
        self._message: Json = {"type": "message", "id": f"msg_{self.id}", "role": "assistant"}

    def whole(self) -> bytes:
        """A response object."""
        return json.dumps(self._response("completed")).encode()

    def head(self) -> bytes:
        """response.created, and the start of the text if there is any."""
        out = self._event("response.created", response=self._response("in_progress"))
        if self.reply.text:
            item = {**self._message, "status": "in_progress", "content": []}
            out += self._event("response.output_item.added", output_index=0, item=item)
            out += self._part("response.content_part.added", part=self._output_text(""))
        return out

    def word(self, text: str) -> bytes:
        """A text delta."""
        return self._part("response.output_text.delta", delta=text)

    def tail(self) -> bytes:
        """The end of the text, the calls, response.completed."""
        out = b""
        if self.reply.text:
            out += self._part("response.output_text.done", text=self.reply.text)
            out += self._part("response.content_part.done", part=self._output_text(self.reply.text))
        for index, item in enumerate(self._items()):
            if item["type"] != "message":
                started = {**item, "status": "in_progress"}
                out += self._event("response.output_item.added", output_index=index, item=started)
            if item["type"] == "function_call":
                place = {"item_id": item["id"], "output_index": index}
                out += self._event("response.function_call_arguments.delta", **place, delta=item["arguments"])
                out += self._event("response.function_call_arguments.done", **place, arguments=item["arguments"])
            out += self._event("response.output_item.done", output_index=index, item=item)
        return out + self._event("response.completed", response=self._response("completed"))

    def _items(self) -> list[Json]:
        text = [{**self._message, "status": "completed", "content": [self._output_text(self.reply.text)]}]
        return [*(text if self.reply.text else []), *(_call_item(c) for c in self.reply.calls)]

    def _response(self, status: str) -> Json:
        i, o = self.reply.input_tokens, self.reply.output_tokens
        usage = {
            "input_tokens": i,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": o,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": i + o,
        }
        done = status == "completed"
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": self.model,
            "status": status,
            "output": self._items() if done else [],
            "usage": usage if done else None,
            "error": None,
            "incomplete_details": None,
            "parallel_tool_calls": True,
            "tools": [],
            "tool_choice": "auto",
            "metadata": {},
        }

    @staticmethod
    def _output_text(text: str) -> Json:
        return {"type": "output_text", "text": text, "annotations": []}

    def _part(self, kind: str, **data: Any) -> bytes:
        return self._event(kind, item_id=self._message["id"], output_index=0, content_index=0, **data)

    def _event(self, kind: str, **data: Any) -> bytes:
        self._sequence += 1
        return encode_event({"type": kind, "sequence_number": self._sequence - 1, **data}, name=kind)


def _call_item(call: Call) -> Json:
    base: Json = {"call_id": f"call_{call.id}", "status": "completed"}
    if call.tool.kind == "local_shell":
        return {"type": "local_shell_call", "id": f"lsh_{call.id}", **base, "action": call.input}
    if call.tool.kind == "custom":
        item = {"type": "custom_tool_call", "id": f"ctc_{call.id}", **base, "name": call.tool.name}
        return {**item, "input": call.input.get("source", json.dumps(call.input))}
    item = {"type": "function_call", "id": f"fc_{call.id}", **base, "name": call.tool.name}
    if call.tool.namespace:
        item["namespace"] = call.tool.namespace
    return {**item, "arguments": json.dumps(call.input)}

"""Events on standard output: one JSON object a line, in the shape of claude-code's stream-json."""

from __future__ import annotations

import os
import time

from lab_agent import VERSION, jsons

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from typing import BinaryIO


def new_id() -> str:
    """A random UUID (RFC 9562, version 4). The uuid module costs more to import than this."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


class Events:
    """Writes events to a binary stream, or only the final text (`text_only`)."""

    def __init__(self, out: BinaryIO, *, text_only: bool = False) -> None:
        self._out = out
        self._text_only = text_only
        self.session_id = new_id()
        self._begun = time.monotonic()

    def init(self, *, cwd: str, model: str, tools: list[str], skills: list[str], servers: list[str]) -> None:
        """The first event."""
        self._emit(
            {
                "type": "system",
                "subtype": "init",
                "cwd": cwd,
                "tools": tools,
                "mcp_servers": [{"name": name, "status": "connected"} for name in servers],
                "model": model,
                "permissionMode": "bypassPermissions",
                "apiKeySource": "ANTHROPIC_API_KEY",
                "skills": skills,
                "agent": "lab-agent",
                "lab_agent_version": VERSION,
            }
        )

    def retry(self, *, attempt: int, of: int, delay_s: float, reason: str) -> None:
        """A failed model call will be made again."""
        self._emit(
            {
                "type": "system",
                "subtype": "api_retry",
                "attempt": attempt,
                "max_retries": of,
                "retry_delay_ms": round(delay_s * 1000),
                "error": reason,
            }
        )

    def partial(self, event: dict) -> None:
        """A raw event of the model's stream, as it came."""
        self._emit({"type": "stream_event", "event": event, "parent_tool_use_id": None})

    def assistant(self, message: dict, block: dict) -> None:
        """One finished content block of the model."""
        shown = {**message, "content": [block]}
        self._emit({"type": "assistant", "message": shown, "parent_tool_use_id": None})

    def tool_result(self, block: dict) -> None:
        """What a tool answered."""
        message = {"role": "user", "content": [block]}
        self._emit({"type": "user", "message": message, "parent_tool_use_id": None})

    def result(
        self, text: str, *, is_error: bool, subtype: str, turns: int, usage: dict[str, int], api_s: float
    ) -> None:
        """The last event."""
        if self._text_only:
            self._out.write(text.encode(errors="replace") + b"\n")
            self._out.flush()
            return
        self._emit(
            {
                "type": "result",
                "subtype": subtype,
                "is_error": is_error,
                "result": text,
                "num_turns": turns,
                "duration_ms": round((time.monotonic() - self._begun) * 1000),
                "duration_api_ms": round(api_s * 1000),
                "usage": usage,
            }
        )

    def _emit(self, event: dict) -> None:
        if self._text_only:
            return
        event["session_id"] = self.session_id
        event["uuid"] = new_id()
        self._out.write(jsons.dumps(event) + b"\n")
        self._out.flush()

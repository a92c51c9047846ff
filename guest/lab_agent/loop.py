"""The agent's loop: ask the model, run the tools it calls, tell it what they said, until it is done."""

from __future__ import annotations

from lab_agent.messages import Client
from lab_agent.tools import Toolbox

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from lab_agent.events import Events

_COUNTED = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class Outcome:
    """How a session ended."""

    def __init__(self, text: str, subtype: str) -> None:
        self.text, self.subtype = text, subtype

    @property
    def is_error(self) -> bool:
        """Whether the answer is not one to rely on."""
        return self.subtype != "success"


class Session:
    """One conversation. `turns` and `usage` are right at any moment, also after an exception."""

    def __init__(
        self, client: Client, toolbox: Toolbox, events: Events, *, model: str, system: str, max_tokens: int
    ) -> None:
        self._client, self._toolbox, self._events = client, toolbox, events
        self._fixed = {
            "model": model,
            "max_tokens": max_tokens,
            "system": [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}],
        }
        self._messages: list[dict] = []
        self.turns = 0
        self.usage = dict.fromkeys(_COUNTED, 0)

    def run(self, prompt: str, max_turns: int) -> Outcome:
        """Work on `prompt`.

        Raises:
            ApiProblem: the model cannot be had.
        """
        self._messages.append({"role": "user", "content": [{"type": "text", "text": prompt}]})
        while self.turns < max_turns:
            asked = {**self._fixed, "tools": self._toolbox.offered()}
            reply = self._client.ask({**asked, "messages": _with_cache_mark(self._messages)})
            self.turns += 1
            for name in _COUNTED:
                self.usage[name] += reply.usage.get(name, 0)
            calls = [b for b in reply.blocks if b.get("type") == "tool_use"]
            text = "\n".join(b["text"] for b in reply.blocks if b.get("type") == "text")
            if reply.stop_reason == "max_tokens":
                return Outcome(
                    f"{text}\n[cut: the answer reached its limit of tokens]".lstrip(), "error_max_tokens"
                )
            if reply.stop_reason == "refusal":
                return Outcome(text or "The model refused to answer.", "error_refusal")
            if not calls:
                return Outcome(text, "success") if text else Outcome("The model said nothing.", "error_empty")
            self._messages.append({"role": "assistant", "content": reply.blocks})
            self._messages.append({"role": "user", "content": [self._use(call) for call in calls]})
        return Outcome(f"Stopped after {max_turns} turns without a final answer.", "error_max_turns")

    def _use(self, call: dict) -> dict:
        given = call.get("input")
        text, is_error = self._toolbox.call(str(call.get("name")), given if isinstance(given, dict) else {})
        block = {"type": "tool_result", "tool_use_id": call.get("id"), "content": text, "is_error": is_error}
        self._events.tool_result(block)
        return block


def _with_cache_mark(messages: list[dict]) -> list[dict]:
    """`messages` with the last block marked, so that the next turn finds all before it in the provider's cache."""
    *earlier, last = messages
    *blocks, block = last["content"]
    return [*earlier, {**last, "content": [*blocks, {**block, "cache_control": {"type": "ephemeral"}}]}]

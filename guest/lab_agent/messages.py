"""The Messages API: one streamed answer, retried where that helps.

Source: Anthropic Messages API, "Streaming Messages" and "Errors".
"""

from __future__ import annotations

import os
import time

from lab_agent import jsons
from lab_agent.http1 import HttpProblem, post

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab_agent.events import Events
    from lab_agent.http1 import Response

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
MAX_RETRIES = 5
MAX_DELAY_S = 30.0
_FIRST_DELAY_S = 0.5
_RETRIED_TYPES = frozenset({"overloaded_error", "rate_limit_error", "api_error", "timeout_error"})


class ApiProblem(Exception):
    """A model call failed. `again` says whether another try may help."""

    def __init__(self, message: str, *, again: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.again, self.retry_after_s = again, retry_after_s


class Reply:
    """A finished answer."""

    def __init__(self) -> None:
        self.message: dict = {}
        self.blocks: list[dict] = []
        self.stop_reason: str | None = None
        self.usage: dict[str, int] = {}

    def add_usage(self, usage: object) -> None:
        """Take over counts; later ones are cumulative and replace earlier ones."""
        if isinstance(usage, dict):
            self.usage.update({k: v for k, v in usage.items() if isinstance(v, int) and not isinstance(v, bool)})


class Client:
    """Asks one model at one server."""

    def __init__(self, base_url: str, key: str, events: Events, *, retries: int = MAX_RETRIES) -> None:
        self._base_url, self._key, self._events, self._retries = base_url, key, events, retries
        self.seconds = 0.0
        """Time spent waiting for the model."""

    def ask(self, request: dict) -> Reply:
        """One answer; its events are written as they come.

        Raises:
            ApiProblem: it failed for good, or `retries` times.
        """
        body = jsons.dumps({**request, "stream": True})
        attempt = 0
        while True:
            begun = time.monotonic()
            try:
                return self._once(body)
            except ApiProblem as problem:
                attempt += 1
                if not problem.again or attempt > self._retries:
                    raise
                delay = self._delay(attempt, problem)
                self._events.retry(attempt=attempt, of=self._retries, delay_s=delay, reason=str(problem))
            finally:
                self.seconds += time.monotonic() - begun
            time.sleep(delay)

    @staticmethod
    def _delay(attempt: int, problem: ApiProblem) -> float:
        if problem.retry_after_s is not None:
            return min(problem.retry_after_s, MAX_DELAY_S)
        # Up to a quarter more by chance, so that boxes that failed together do not come back together.
        return min(_FIRST_DELAY_S * 2.0 ** (attempt - 1) * (1 + os.urandom(1)[0] / 1024), MAX_DELAY_S)

    def _once(self, body: bytes) -> Reply:
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream",
            "anthropic-version": "2023-06-01",
            "x-api-key": self._key,
        }
        try:
            response = post(self._base_url, "/v1/messages", headers, body)
            try:
                if response.status != 200:
                    raise _refusal(response)
                return self._read(response)
            finally:
                response.close()
        except HttpProblem as e:
            raise ApiProblem(f"The model's server: {e}", again=True) from e

    def _read(self, response: Response) -> Reply:
        reply = Reply()
        partial_json: dict[int, str] = {}
        at: dict[int, dict] = {}
        for event in _events(response):
            kind = event.get("type")
            if kind == "error":
                error = event.get("error")
                error = error if isinstance(error, dict) else {}
                raise ApiProblem(
                    f"The model's server: {error.get('message', 'an error in the stream')}",
                    again=error.get("type") in _RETRIED_TYPES,
                )
            if kind != "ping" and _delta_type(event) != "input_json_delta":
                # A tool's input is shown once it is whole; its pieces would only cost time.
                self._events.partial(event)
            if kind == "message_start" and isinstance(event.get("message"), dict):
                reply.message = event["message"]
                reply.add_usage(reply.message.get("usage"))
            elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
                at[event.get("index", 0)] = dict(event["content_block"])
            elif kind == "content_block_delta" and event.get("index", 0) in at:
                _grow(at[event.get("index", 0)], event.get("delta") or {}, partial_json, event.get("index", 0))
            elif kind == "content_block_stop" and event.get("index", 0) in at:
                block = _finished(at.pop(event.get("index", 0)), partial_json.pop(event.get("index", 0), ""))
                if block.get("type") != "text" or block.get("text"):
                    reply.blocks.append(block)
                    self._events.assistant(reply.message, block)
            elif kind == "message_delta":
                delta = event.get("delta")
                reply.stop_reason = delta.get("stop_reason") if isinstance(delta, dict) else None
                reply.add_usage(event.get("usage"))
            elif kind == "message_stop":
                return reply
        raise ApiProblem("The model's answer broke off.", again=True)


def _events(response: Response) -> Iterator[dict]:
    """Server-sent events as objects; comments and what is not JSON are passed over."""
    data: list[bytes] = []
    for line in response.lines():
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            try:
                event = jsons.loads(b"\n".join(data))
            except (ValueError, RecursionError):
                event = None
            data = []
            if isinstance(event, dict):
                yield event


def _delta_type(event: dict) -> str | None:
    """What kind of piece a content_block_delta brings."""
    delta = event.get("delta")
    return delta.get("type") if isinstance(delta, dict) else None


def _grow(block: dict, delta: dict, partial_json: dict[int, str], index: int) -> None:
    for kind, name in (("text_delta", "text"), ("thinking_delta", "thinking"), ("signature_delta", "signature")):
        if delta.get("type") == kind:
            block[name] = block.get(name, "") + str(delta.get(name, ""))
    if delta.get("type") == "input_json_delta":
        partial_json[index] = partial_json.get(index, "") + str(delta.get("partial_json", ""))


def _finished(block: dict, partial_json: str) -> dict:
    if block.get("type") == "tool_use" and partial_json:
        try:
            given = jsons.loads(partial_json)
        except (ValueError, RecursionError):
            given = {"invalid_json": partial_json}
        block["input"] = given if isinstance(given, dict) else {"value": given}
    return block


def _refusal(response: Response) -> ApiProblem:
    body = response.body()
    try:
        said = jsons.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = body[:200].decode(errors="replace").strip() or "no explanation"
    after = response.headers.get("retry-after", "")
    return ApiProblem(
        f"The model's server answered {response.status}: {said}",
        again=response.status in RETRIED,
        retry_after_s=float(after) if after.isdecimal() else None,
    )

"""What both clients share: addresses, bounds, requests as data, answers into models and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent

from voidbox_lab.errors import ProviderError, UserError, VoidboxError, from_dict
from voidbox_lab.spec import TERMINAL, RunSpec
from voidbox_lab.spec.api import ExecRequest
from voidbox_lab.spec.events import Event, RunChanged

BASE_URL = "http://voidbox"
"""The host is nobody: the connection is the UNIX socket."""
TIMEOUT = httpx.Timeout(60, connect=10)
STREAM_TIMEOUT = httpx.Timeout(60, connect=10, read=40)
"""The daemon sends a heartbeat every 10 s; four missed ones are a dead connection."""
RESUMES = 6
"""How often in a row a broken event stream is taken up again without a single new event."""
CHUNK = 1 << 20
LOST = (httpx.TransportError, httpx.StreamError)


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    body: Any = None
    """JSON."""


def submit(spec: RunSpec) -> Call:
    """Begin a run."""
    return Call("POST", "/v1/runs", body=spec.model_dump(mode="json"))


def run(run_id: str, *, then: str = "") -> str:
    """The path of a run, whatever characters its id has."""
    return f"/v1/runs/{quote(run_id, safe='')}{then}"


def execute(request: ExecRequest) -> Call:
    """A command in a fresh box."""
    return Call("POST", "/v1/exec", body=request.model_dump(mode="json"))


def checked(response: httpx.Response) -> httpx.Response:
    """`response` if it is a success, else the error it carries, raised. Its body must have been read."""
    if response.is_success:
        return response
    try:
        error: VoidboxError = from_dict(json.loads(response.content)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        error = ProviderError(f"The daemon answered with HTTP status {response.status_code}; its log says why.")
    raise error


def event_of(sse: ServerSentEvent) -> Event | None:
    """The run event of a server-sent event; None for one of another type.

    Raises:
        VoidboxError: the stream ended with this error.
    """
    if sse.event == "failed":
        raise failed(sse)
    return Event.model_validate_json(sse.data) if sse.event == "event" else None


def failed(sse: ServerSentEvent) -> VoidboxError:
    """The error at the end of a stream."""
    return from_dict(json.loads(sse.data)["error"])


def is_last(event: Event) -> bool:
    """Whether nothing of the run follows."""
    return isinstance(event.body, RunChanged) and event.body.state in TERMINAL


def lost(what: str, error: Exception) -> ProviderError:
    """The daemon could not be reached, or the connection to it broke."""
    detail = f" ({type(error).__name__})"
    return ProviderError(
        f"The connection to the daemon was lost while {what}{detail}; look into its log, which "
        "`voidbox daemon status` names, then try again.",
        cause="daemon-lost",
    )


class Resume:
    """Decides, for one event stream, whether and when to take it up again after it broke."""

    def __init__(self, run_id: str, after: int, *, follow: bool = True, tail: int | None = None) -> None:
        self._run = run_id
        self.after = after
        """The last event seen."""
        self._follow, self._tail = follow, tail
        self._failures = 0

    @property
    def params(self) -> dict[str, Any]:
        """What to ask for now."""
        params: dict[str, Any] = {"after": self.after}
        if not self._follow:
            params["follow"] = False
        if self._tail is not None:
            params["tail"] = self._tail
        return params

    @property
    def again(self) -> bool:
        """Whether this attempt follows one that broke."""
        return self._failures > 0

    @property
    def reconnect(self) -> bool:
        """Whether it is time to look for a new daemon."""
        return self._failures > 1

    def is_new(self, event: Event | None) -> bool:
        """Whether to hand `event` on; notes it as seen."""
        if event is None or event.seq <= self.after:
            return False
        # From here on it goes by number.
        self._failures, self.after, self._tail = 0, event.seq, None
        return True

    def broke(self, error: Exception | None = None) -> float:
        """Seconds to wait before the next attempt; raises when there have been enough."""
        if isinstance(error, ProviderError) and error.cause != "daemon-lost":
            raise error
        self._failures += 1
        if self._failures > RESUMES:
            raise lost(f"following {self._run}", error or EOFError()) from error
        return 0.05 * float(2**self._failures)


def readable(path: Path) -> Path:
    """`path` if it is a file that can be read; `UserError` if not."""
    path = path.expanduser()
    try:
        with path.open("rb"):
            return path
    except OSError as e:
        raise UserError(f"The input {path} cannot be read ({e.strerror}); check the path.") from e

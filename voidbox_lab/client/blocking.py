"""The daemon's API for plain scripts, the command line and threads. Works inside a running event loop too."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, connect_sse

from voidbox_lab.client import keys, launch, protocol
from voidbox_lab.client.protocol import Call
from voidbox_lab.client.way import way
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import AT_REST, InputFile, RunRecord, RunSpec, RunState
from voidbox_lab.spec.api import (
    CHECK_EVENT,
    EXEC_EVENT,
    CheckEvent,
    ExecEvent,
    ExecRequest,
    Health,
    PruneReport,
    PruneRequest,
)
from voidbox_lab.spec.events import Event


class Client:
    """``with Client() as client``; arguments and errors as `AsyncClient`. For one thread at a time."""

    def __init__(
        self, settings: Settings | None = None, *, start: bool = True, env: Mapping[str, str] | None = None
    ) -> None:
        self.settings = settings or Settings.from_env()
        self._start = start
        self._env = os.environ if env is None else env
        self._http: httpx.Client | None = None

    def __enter__(self) -> Client:
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The daemon goes on."""
        http, self._http = self._http, None
        if http is not None:
            http.close()

    def health(self) -> Health:
        """The daemon about itself."""
        return Health.model_validate_json(self._call(Call("GET", "/v1/health")).content)

    def submit(self, spec: RunSpec) -> RunRecord:
        """Begin a run; its inputs were uploaded."""
        return RunRecord.model_validate_json(self._call(protocol.submit(spec)).content)

    def run(self, run_id: str) -> RunRecord:
        """The record of a run now."""
        return RunRecord.model_validate_json(self._call(Call("GET", protocol.run(run_id))).content)

    def runs(
        self, *, limit: int = 100, before: str | None = None, state: RunState | None = None
    ) -> list[RunRecord]:
        """The newest runs, newest first: those older than the run `before`, those in `state`, if given."""
        params = {k: v for k, v in {"limit": limit, "before": before, "state": state}.items() if v is not None}
        response = self._call(Call("GET", "/v1/runs", params=params))
        return [RunRecord.model_validate(record) for record in response.json()]

    def forget(self, run_id: str) -> None:
        """Delete a run that has ended, and its events."""
        self._call(Call("DELETE", protocol.run(run_id)))

    def prune(self, request: PruneRequest) -> PruneReport:
        """Delete old runs and the artifacts that only they refer to."""
        call = Call("POST", "/v1/prune", body=request.model_dump(mode="json"))
        return PruneReport.model_validate_json(self._call(call).content)

    def cancel(self, run_id: str) -> RunRecord:
        """Ask a run to end; returns at once, also if it has ended already."""
        return RunRecord.model_validate_json(
            self._call(Call("POST", protocol.run(run_id, then="/cancel"))).content
        )

    def pause(self, run_id: str) -> RunRecord:
        """Have a run start nothing more; what is at work goes on."""
        return RunRecord.model_validate_json(self._call(Call("POST", protocol.run(run_id, then="/pause"))).content)

    def resume(self, run_id: str) -> RunRecord:
        """Let a paused run go on, or one whose daemon died. `UserError` for one that has ended."""
        return RunRecord.model_validate_json(
            self._call(Call("POST", protocol.run(run_id, then="/resume"))).content
        )

    def events(
        self, run_id: str, after: int = 0, *, follow: bool = True, tail: int | None = None
    ) -> Generator[Event, None, None]:
        """As `AsyncClient.events`."""
        resume = protocol.Resume(run_id, after, follow=follow, tail=tail)
        while True:
            path, params = protocol.run(run_id, then="/events"), resume.params
            try:
                if resume.reconnect:
                    self._connect()
                with self._stream("GET", path, params) as stream:
                    for sse in stream:
                        event = protocol.event_of(sse)
                        if event is not None and resume.is_new(event):
                            yield event
                            if protocol.is_last(event):
                                return
                if not follow:
                    return
                # Ended without the last event: it came before `after`, or the daemon left. Look once more.
                if resume.again and self.run(run_id).state in AT_REST:
                    return
                pause = resume.broke()
            except (*protocol.LOST, ProviderError) as e:
                pause = resume.broke(e)
            time.sleep(pause)

    def upload(self, source: str | Path | bytes) -> InputFile:
        """Keep a file, or bytes, in the daemon's store."""
        if isinstance(source, bytes):
            return self._put(source)
        with protocol.readable(Path(source)).open("rb") as file:
            return self._put(iter(lambda: file.read(protocol.CHUNK), b""))

    def download(self, digest: str) -> bytes:
        """The bytes of an artifact."""
        return self._call(Call("GET", f"/v1/artifacts/{digest}")).content

    def fetch(self, digest: str, to: Path) -> None:
        """Write an artifact to the file `to`, which appears only when whole.

        Raises:
            UserError: it cannot be written there.
            ProviderError: what came is not what the digest says (cause ``artifact-corrupt``).
        """
        call, sha = Call("GET", f"/v1/artifacts/{digest}"), hashlib.sha256()
        part = to.with_name(f".{to.name}.{secrets.token_hex(4)}.part")
        try:
            with self._open.stream(call.method, call.path) as response, part.open("xb") as file:
                if not response.is_success:
                    response.read()
                    protocol.checked(response)
                for data in response.iter_bytes(protocol.CHUNK):
                    sha.update(data)
                    file.write(data)
            if f"sha256:{sha.hexdigest()}" != digest:
                raise ProviderError(f"The artifact {digest} was damaged on its way.", cause="artifact-corrupt")
            part.replace(to)
        except protocol.LOST as e:
            raise protocol.lost("fetching a file", e) from e
        except OSError as e:
            raise UserError(f"{to} cannot be written ({e.strerror}); check the path.") from e
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def execute(self, request: ExecRequest) -> Iterator[ExecEvent]:
        """Run a command in a fresh box; closing the iterator ends the box."""
        call = protocol.execute(request)
        for sse in self._events_of(call.method, call.path, call.body):
            yield EXEC_EVENT.validate_json(sse.data)

    def check(self) -> Iterator[CheckEvent]:
        """Have the daemon boot a real box and measure what works; the last event is the report."""
        for sse in self._events_of("GET", "/v1/check", None):
            yield CHECK_EVENT.validate_json(sse.data)

    def gc(self) -> list[str]:
        """Remove what dead processes left; its names."""
        removed: list[str] = self._call(Call("POST", "/v1/gc")).json()["removed"]
        return removed

    def shutdown(self, *, if_idle: bool = False) -> None:
        """End the daemon; with `if_idle`, `UserError` if something runs."""
        self._call(Call("POST", "/v1/shutdown", params={"if_idle": if_idle}))

    # -- how -------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._start:
            launch.ensure_daemon(self.settings)
        self.close()
        there = way(self.settings)
        self._http = there.client()
        if there.is_private and (found := keys.found(self._env)):
            self._call(Call("POST", "/v1/credentials", body=found))

    @property
    def _open(self) -> httpx.Client:
        if self._http is None:
            raise UserError("The client is not open; use it as: with Client() as client.")
        return self._http

    def _call(self, call: Call) -> httpx.Response:
        try:
            response = self._open.request(call.method, call.path, params=call.params, json=call.body)
        except protocol.LOST as e:
            raise protocol.lost(f"asking {call.method} {call.path}", e) from e
        return protocol.checked(response)

    def _put(self, content: bytes | Iterator[bytes]) -> InputFile:
        try:
            response = self._open.put("/v1/artifacts", content=content)
        except protocol.LOST as e:
            raise protocol.lost("uploading a file", e) from e
        return InputFile.model_validate_json(protocol.checked(response).content)

    def _events_of(self, method: str, path: str, body: Any) -> Iterator[ServerSentEvent]:
        try:
            with self._stream(method, path, None, body) as stream:
                for sse in stream:
                    if sse.event == "failed":
                        raise protocol.failed(sse)
                    yield sse
        except protocol.LOST as e:
            raise protocol.lost(f"asking {method} {path}", e) from e

    @contextmanager
    def _stream(
        self, method: str, path: str, params: Mapping[str, Any] | None, body: Any = None
    ) -> Iterator[Iterator[ServerSentEvent]]:
        options: dict[str, Any] = {"params": params, "timeout": protocol.STREAM_TIMEOUT}
        if body is not None:
            options["json"] = body
        with connect_sse(self._open, method, path, **options) as source:
            if not source.response.is_success:
                source.response.read()
                protocol.checked(source.response)
            yield source.iter_sse()

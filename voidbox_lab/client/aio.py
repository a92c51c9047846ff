"""The daemon's API for async callers: notebooks and the widgets."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio import to_thread
from httpx_sse import EventSource, ServerSentEvent, aconnect_sse

from voidbox_lab.client import keys, protocol
from voidbox_lab.client.launch import ensure_daemon
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


class AsyncClient:
    """``async with AsyncClient() as client``. One event loop's; make one per use, it is cheap.

    Args:
        settings: where the daemon is; default: from the environment.
        start: start the daemon if none runs. One that `VOIDBOX_DAEMON` names is used and never started.
        env: where model keys are looked for; default: the process environment.

    Every method raises `VoidboxError`; `ProviderError` with cause ``daemon-lost`` when the daemon went away.
    """

    def __init__(
        self, settings: Settings | None = None, *, start: bool = True, env: Mapping[str, str] | None = None
    ) -> None:
        self.settings = settings or Settings.from_env()
        self._start = start
        self._env = os.environ if env is None else env
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> AsyncClient:
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. The daemon goes on."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def health(self) -> Health:
        """The daemon about itself."""
        return Health.model_validate_json((await self._call(Call("GET", "/v1/health"))).content)

    async def submit(self, spec: RunSpec) -> RunRecord:
        """Begin a run; its inputs were uploaded."""
        return RunRecord.model_validate_json((await self._call(protocol.submit(spec))).content)

    async def run(self, run_id: str) -> RunRecord:
        """The record of a run now."""
        return RunRecord.model_validate_json((await self._call(Call("GET", protocol.run(run_id)))).content)

    async def runs(
        self, *, limit: int = 100, before: str | None = None, state: RunState | None = None
    ) -> list[RunRecord]:
        """The newest runs, newest first: those older than the run `before`, those in `state`, if given."""
        params = {k: v for k, v in {"limit": limit, "before": before, "state": state}.items() if v is not None}
        response = await self._call(Call("GET", "/v1/runs", params=params))
        return [RunRecord.model_validate(record) for record in response.json()]

    async def forget(self, run_id: str) -> None:
        """Delete a run that has ended, and its events."""
        await self._call(Call("DELETE", protocol.run(run_id)))

    async def prune(self, request: PruneRequest) -> PruneReport:
        """Delete old runs and the artifacts that only they refer to."""
        call = Call("POST", "/v1/prune", body=request.model_dump(mode="json"))
        return PruneReport.model_validate_json((await self._call(call)).content)

    async def cancel(self, run_id: str) -> RunRecord:
        """Ask a run to end; returns at once, also if it has ended already."""
        response = await self._call(Call("POST", protocol.run(run_id, then="/cancel")))
        return RunRecord.model_validate_json(response.content)

    async def pause(self, run_id: str) -> RunRecord:
        """Have a run start nothing more; what is at work goes on."""
        response = await self._call(Call("POST", protocol.run(run_id, then="/pause")))
        return RunRecord.model_validate_json(response.content)

    async def resume(self, run_id: str) -> RunRecord:
        """Let a paused run go on, or one whose daemon died. `UserError` for one that has ended."""
        response = await self._call(Call("POST", protocol.run(run_id, then="/resume")))
        return RunRecord.model_validate_json(response.content)

    async def events(
        self, run_id: str, after: int = 0, *, follow: bool = True, tail: int | None = None
    ) -> AsyncIterator[Event]:
        """All events after number `after`, until the run has ended or rests (``interrupted``).

        With `tail` at most so many of the last ones there are now; without `follow` none that is still to come.
        A stream that breaks is taken up where it broke; if the daemon died, a new one is started, which
        has the run's end to tell.
        """
        resume = protocol.Resume(run_id, after, follow=follow, tail=tail)
        while True:
            path, params = protocol.run(run_id, then="/events"), resume.params
            try:
                if resume.reconnect:
                    await self._connect()
                async with self._stream("GET", path, params) as stream:
                    async for sse in stream:
                        event = protocol.event_of(sse)
                        if event is not None and resume.is_new(event):
                            yield event
                            if protocol.is_last(event):
                                return
                if not follow:
                    return
                # Ended without the last event: it came before `after`, or the daemon left. Look once more.
                if resume.again and (await self.run(run_id)).state in AT_REST:
                    return
                pause = resume.broke()
            except (*protocol.LOST, ProviderError) as e:
                pause = resume.broke(e)
            await anyio.sleep(pause)

    async def upload(self, source: str | Path | bytes) -> InputFile:
        """Keep a file, or bytes, in the daemon's store."""
        if isinstance(source, bytes):
            return await self._put(source)
        path = await to_thread.run_sync(protocol.readable, Path(source))
        return await self._put(_chunks(path))

    async def download(self, digest: str) -> bytes:
        """The bytes of an artifact."""
        return (await self._call(Call("GET", f"/v1/artifacts/{digest}"))).content

    async def execute(self, request: ExecRequest) -> AsyncIterator[ExecEvent]:
        """Run a command in a fresh box; closing the iterator ends the box."""
        call = protocol.execute(request)
        async for sse in self._events_of(call.method, call.path, call.body):
            yield EXEC_EVENT.validate_json(sse.data)

    async def check(self) -> AsyncIterator[CheckEvent]:
        """Have the daemon boot a real box and measure what works; the last event is the report."""
        async for sse in self._events_of("GET", "/v1/check", None):
            yield CHECK_EVENT.validate_json(sse.data)

    async def gc(self) -> list[str]:
        """Remove what dead processes left; its names."""
        removed: list[str] = (await self._call(Call("POST", "/v1/gc"))).json()["removed"]
        return removed

    async def shutdown(self, *, if_idle: bool = False) -> None:
        """End the daemon; with `if_idle`, `UserError` if something runs."""
        await self._call(Call("POST", "/v1/shutdown", params={"if_idle": if_idle}))

    # -- how -------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        if self._start:
            # Abandoned if the caller is cancelled: the daemon comes up all the same, and the next caller finds it.
            await to_thread.run_sync(ensure_daemon, self.settings, abandon_on_cancel=True)
        await self.aclose()
        there = way(self.settings)
        self._http = there.async_client()
        if there.is_private and (found := keys.found(self._env)):
            await self._call(Call("POST", "/v1/credentials", body=found))

    @property
    def _open(self) -> httpx.AsyncClient:
        if self._http is None:
            raise UserError("The client is not open; use it as: async with AsyncClient() as client.")
        return self._http

    async def _call(self, call: Call) -> httpx.Response:
        try:
            response = await self._open.request(call.method, call.path, params=call.params, json=call.body)
        except protocol.LOST as e:
            raise protocol.lost(f"asking {call.method} {call.path}", e) from e
        return protocol.checked(response)

    async def _put(self, content: bytes | AsyncIterator[bytes]) -> InputFile:
        try:
            response = await self._open.put("/v1/artifacts", content=content)
        except protocol.LOST as e:
            raise protocol.lost("uploading a file", e) from e
        return InputFile.model_validate_json(protocol.checked(response).content)

    async def _events_of(self, method: str, path: str, body: Any) -> AsyncIterator[ServerSentEvent]:
        try:
            async with self._stream(method, path, None, body) as stream:
                async for sse in stream:
                    if sse.event == "failed":
                        raise protocol.failed(sse)
                    yield sse
        except protocol.LOST as e:
            raise protocol.lost(f"asking {method} {path}", e) from e

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, params: Mapping[str, Any] | None, body: Any = None
    ) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
        options: dict[str, Any] = {"params": params, "timeout": protocol.STREAM_TIMEOUT}
        if body is not None:
            options["json"] = body
        source: EventSource
        async with aconnect_sse(self._open, method, path, **options) as source:
            if not source.response.is_success:
                await source.response.aread()
                protocol.checked(source.response)
            yield source.aiter_sse()


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(protocol.CHUNK):
            yield chunk

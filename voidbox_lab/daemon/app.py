"""The HTTP API. Every route is a few lines over `Daemon`; shapes are in `voidbox_lab.spec` and its OpenAPI."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI, Header, Query, Request, Response, WebSocket
from fastapi.responses import FileResponse
from sse_starlette import EventSourceResponse

from voidbox_lab import __version__
from voidbox_lab.daemon import check, execs, problem, shell, streams
from voidbox_lab.daemon.activity import Bounded
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.errors import UserError
from voidbox_lab.spec import TERMINAL, InputFile, RunRecord, RunSpec
from voidbox_lab.spec.api import ExecRequest, Health
from voidbox_lab.spec.events import RunChanged

RECHECK_S = 20.0
"""An event stream looks into the store at least so often."""
PAGE = 500
"""Most events read at once for a stream."""


def create(daemon: Daemon) -> FastAPI:
    """The API of `daemon`."""
    app = FastAPI(
        title="voidbox-lab", version=__version__, docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json"
    )
    app.add_middleware(Bounded, activity=daemon.activity)
    problem.install(app)

    @app.get("/v1/health")
    async def health() -> Health:
        return daemon.health()

    @app.post("/v1/runs", status_code=201)
    async def submit(spec: RunSpec) -> RunRecord:
        return await daemon.submit(spec)

    @app.get("/v1/runs")
    async def runs(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[RunRecord]:
        return await daemon.store.list_runs(limit=limit)

    @app.get("/v1/runs/{run}")
    async def run(run: str) -> RunRecord:
        return await daemon.store.get_run(run)

    @app.post("/v1/runs/{run}/cancel")
    async def cancel(run: str) -> RunRecord:
        return await daemon.runner.cancel(run)

    @app.get("/v1/runs/{run}/events", response_class=EventSourceResponse)
    async def events(
        run: str,
        after: Annotated[int, Query(ge=0)] = 0,
        last_event_id: Annotated[int | None, Header(ge=0)] = None,
    ) -> EventSourceResponse:
        """Events after a number, as server-sent events whose id is that number; ends with the run."""
        await daemon.store.has_ended(run)  # an unknown run is a 404, not a stream
        start = after if last_event_id is None else last_event_id
        return streams.respond(lambda send: _follow(daemon, run, start, send))

    @app.put("/v1/artifacts", status_code=201)
    async def upload(request: Request) -> InputFile:
        """Keep the request's body."""
        return await daemon.artifacts.put(request.stream())

    @app.get("/v1/artifacts/{digest}", response_class=FileResponse)
    async def download(digest: str) -> FileResponse:
        return FileResponse(await daemon.artifacts.verified(digest), media_type="application/octet-stream")

    @app.post("/v1/exec", response_class=EventSourceResponse)
    async def execute(request: ExecRequest) -> EventSourceResponse:
        """A command in a fresh box; its box is closed when the command ends or the client goes away."""
        daemon.admission.check("The command", request.memory_mb)
        return streams.respond(lambda send: execs.execute(daemon, request, send))

    @app.websocket("/v1/shell")
    async def terminal(socket: WebSocket) -> None:
        await shell.serve(daemon, socket)

    @app.get("/v1/check", response_class=EventSourceResponse)
    async def check_host() -> EventSourceResponse:
        """Boot a real box and measure what works here."""
        return streams.respond(lambda send: check.check(daemon, send))

    @app.post("/v1/gc")
    async def collect() -> dict[str, list[str]]:
        """Remove what dead processes left behind; the names of what was removed."""
        return {"removed": await daemon.sweep()}

    @app.post("/v1/credentials", status_code=204)
    async def credentials(keys: Annotated[dict[str, str], Body(max_length=64)]) -> Response:
        """Model keys by environment variable name; kept in memory until the daemon ends, never written."""
        daemon.add_keys(keys)
        return Response(status_code=204)

    @app.post("/v1/shutdown", status_code=202)
    async def shutdown(if_idle: bool = False) -> Health:
        """End the daemon, cancelling what runs; with `if_idle`, only if nothing runs."""
        if if_idle and daemon.busy:
            raise UserError("The daemon is busy; wait for its runs to end, or cancel them.", cause="busy")
        daemon.stop()
        return daemon.health()

    return app


async def _follow(daemon: Daemon, run: str, after: int, send: streams.Sender) -> None:
    """Send what the store has after event `after`, `PAGE` events at a time, until the run has ended.

    What was sent is not read again, and the record, which holds the whole spec, is not read at all.
    """
    ended = False
    while True:
        # Asked before the events are read: by then the last ones of all runs are written.
        ended = ended or daemon.stopped.is_set()
        news = daemon.journal.news(run)
        events = await daemon.store.read_events(run, after=after, limit=PAGE)
        for event in events:
            await send("event", event, event.seq)
            after = event.seq
            if isinstance(event.body, RunChanged) and event.body.state in TERMINAL:
                return
        if len(events) == PAGE:
            continue
        if ended:
            return
        # `after` may be past the last event. If it is not, that one came after the events were read: once more.
        ended = not events and await daemon.store.has_ended(run)
        if not ended:
            await daemon.until(news, RECHECK_S)

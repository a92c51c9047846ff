"""Runs: begin, list, look at, follow; cancel, pause, resume; forget."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Path, Query, Response

from voidbox_lab.daemon import streams
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.openapi import Route, errors, events
from voidbox_lab.spec import RunRecord, RunSpec, RunState
from voidbox_lab.spec.api import PruneReport, PruneRequest

RECHECK_S = 20.0
"""An event stream looks into the store at least so often."""
PAGE = 500
"""Most events read at once for a stream."""
MAX_SEQ = (1 << 53) - 1
"""Largest number of an event: what JSON readers keep exact, and less than SQLite's integers hold."""

RunId = Annotated[str, Path(description="The run's id, as its record has it.", examples=["run-0123456789ab"])]
UNKNOWN = errors(_404="There is no such run.")
_EXAMPLE = {
    "summary": "One agent",
    "value": {
        "stages": [
            {
                "box": {
                    "name": "analyst",
                    "prompt": "What does /workspace/input/stocks.csv say?",
                    "model": {"provider": "scripted", "name": "quickstart"},
                }
            }
        ]
    },
}
_STREAM = (
    'event: event\nid: 1\ndata: {"seq":1,"run":"run-0123456789ab","at":1700000000.0,"stage":null,"body":{…}}\n\n'
)


def routes(daemon: Daemon) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["runs"], route_class=Route)

    @router.post("/v1/runs", status_code=201, operation_id="submitRun", summary="Begin a run")
    async def submit(spec: Annotated[RunSpec, Body(openapi_examples={"one": _EXAMPLE})]) -> RunRecord:
        """The run goes on when the client goes away; its events are kept. Inputs are uploaded beforehand."""
        return await daemon.submit(spec)

    @router.get("/v1/runs", operation_id="listRuns", summary="The newest runs, newest first", responses=UNKNOWN)
    async def runs(
        limit: Annotated[int, Query(ge=1, le=1000, description="Most runs to list.")] = 100,
        before: Annotated[
            str | None,
            Query(description="Only runs older than this one: the last id of a page asks for the next."),
        ] = None,
        state: Annotated[RunState | None, Query(description="Only runs in this state.")] = None,
    ) -> list[RunRecord]:
        return await daemon.store.list_runs(limit=limit, before=before, state=state)

    @router.get("/v1/runs/{run}", operation_id="getRun", summary="A run as it is now", responses=UNKNOWN)
    async def run(run: RunId) -> RunRecord:
        return await daemon.store.get_run(run)

    @router.post("/v1/runs/{run}/cancel", operation_id="cancelRun", summary="Ask a run to end", responses=UNKNOWN)
    async def cancel(run: RunId) -> RunRecord:
        """Returns at once; a run that has ended stays as it is."""
        return await daemon.runner.cancel(run)

    @router.post(
        "/v1/runs/{run}/pause", operation_id="pauseRun", summary="Have a run start nothing more", responses=UNKNOWN
    )
    async def pause(run: RunId) -> RunRecord:
        """What is at work goes on. A run that is paused or has ended stays as it is."""
        return await daemon.runner.pause(run)

    @router.post(
        "/v1/runs/{run}/resume",
        operation_id="resumeRun",
        summary="Let a run go on",
        responses=UNKNOWN | errors(_409="The run has ended, or the daemon is full or ending."),
    )
    async def resume(run: RunId) -> RunRecord:
        """A paused one, or one whose daemon died: what had succeeded is kept, what had not is run again."""
        return await daemon.resume(run)

    @router.delete(
        "/v1/runs/{run}",
        status_code=204,
        operation_id="deleteRun",
        summary="Forget a run",
        responses=UNKNOWN | errors(_409="The run has not ended."),
    )
    async def delete(run: RunId) -> Response:
        """Its record and its events. Artifacts stay until they are pruned."""
        await daemon.store.delete_run(run)
        return Response(status_code=204)

    @router.post("/v1/prune", operation_id="pruneRuns", summary="Forget old runs and what only they refer to")
    async def prune_runs(request: PruneRequest) -> PruneReport:
        """A run goes if it has ended and every test that is given is met; an artifact, if no run refers to it."""
        return await daemon.prune(request)

    @router.get(
        "/v1/runs/{run}/events",
        operation_id="followRun",
        summary="A run's events, until it has ended",
        response_class=streams.EventStream,
        responses=UNKNOWN
        | events(
            "Events in order, each with its number as the SSE id. A comment every 10 s keeps the connection.",
            _STREAM,
            {"event": "Event", "failed": "Failed"},
        ),
    )
    async def read(
        run: RunId,
        after: Annotated[int, Query(ge=0, le=MAX_SEQ, description="Only events after this number.")] = 0,
        last_event_id: Annotated[
            int | None,
            Header(ge=0, le=MAX_SEQ, description="As `after`, and before it: what SSE clients send to resume."),
        ] = None,
        follow: Annotated[
            bool, Query(description="Wait for what is to come; else the stream ends at the last event there is.")
        ] = True,
        tail: Annotated[
            int | None, Query(ge=0, le=MAX_SEQ, description="At most so many of the last events.")
        ] = None,
    ) -> streams.EventStream:
        """A number beyond the last event is waited for, or ends the stream at once if the run has ended."""
        await daemon.store.has_ended(run)  # an unknown run is a 404, not a stream
        start = after if last_event_id is None else last_event_id
        last = await daemon.store.count_events(run) if tail is not None or not follow else 0
        if tail is not None:
            start = max(start, last - tail)
        return streams.respond_raw(
            lambda send: follow_run(daemon, run, start, send, until=None if follow else last)
        )

    return router


async def follow_run(
    daemon: Daemon, run: str, after: int, send: streams.RawSender, *, until: int | None = None
) -> None:
    """Send what the store has after event `after`, `PAGE` events at a time, until the run has ended or rests, or
    with event `until`.

    What was sent is not read again, and the record, which holds the whole spec, is not read at all.
    """
    pages = daemon.pages.of(run)
    while until is None or after < until:
        # Asked before the events are read: by then the last ones of a run that nobody drives are written.
        ended = daemon.stopped.is_set() or run not in daemon.runner.active
        news = daemon.journal.news(run)
        limit = PAGE if until is None else min(PAGE, until - after)
        # A page that stops short is nobody else's.
        read = pages.after(after, news, PAGE) if limit == PAGE else pages.alone(after, limit)
        if page := await read:
            for chunk in page.chunks:
                await send(chunk)
            after = page.last
            if page.ends:
                return
            if page.more:
                continue
        if ended or until is not None:
            return
        await daemon.until(news, RECHECK_S)

"""Boxes without a run: a command or a terminal in one, a check of the host, the sweep of left-overs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, WebSocket

from voidbox_lab.daemon import check, execs, shell, streams
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.openapi import Route, events
from voidbox_lab.spec.api import ExecRequest, Swept

_EXAMPLE = {"summary": "A shell command", "value": {"argv": ["sh", "-c", "uname -a"], "memory_mb": 512}}
_EXEC = (
    'event: exit\ndata: {"type":"exit","code":0,"signal":null,"timed_out":false,"oom":false,"duration_s":0.2}\n\n'
)
_CHECK = 'event: step\ndata: {"type":"step","name":"image","state":"ok","message":"…","seconds":0.1,"data":{}}\n\n'


def routes(daemon: Daemon) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["boxes"], route_class=Route)

    @router.post(
        "/v1/exec",
        operation_id="execute",
        summary="A command in a fresh box",
        response_class=streams.EventStream,
        responses=events(
            "The wait for room, the start, output as it comes, and the exit, or `failed`.",
            _EXEC,
            dict.fromkeys(("waiting", "started", "output", "exit"), "ExecEvent") | {"failed": "Failed"},
        ),
    )
    async def execute(
        request: Annotated[ExecRequest, Body(openapi_examples={"shell": _EXAMPLE})],
    ) -> streams.EventStream:
        """Its box is closed when the command ends or the client goes away."""
        daemon.admission.check("The command", request.memory_mb)
        return streams.respond(lambda send: execs.execute(daemon, request, send))

    @router.websocket("/v1/shell")
    async def terminal(socket: WebSocket) -> None:
        await shell.serve(daemon, socket)

    @router.get(
        "/v1/check",
        operation_id="checkHost",
        summary="Boot a real box and measure what works here",
        response_class=streams.EventStream,
        responses=events(
            "Each step as it begins and ends, then the report.",
            _CHECK,
            {"step": "CheckEvent", "report": "CheckEvent", "failed": "Failed"},
        ),
    )
    async def check_host() -> streams.EventStream:
        return streams.respond(lambda send: check.check(daemon, send))

    @router.post("/v1/gc", operation_id="collectGarbage", summary="Remove what dead processes left behind")
    async def collect() -> Swept:
        return Swept(removed=tuple(await daemon.sweep()))

    return router

"""The daemon itself: health, model keys, the end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.openapi import Route, errors
from voidbox_lab.errors import UserError
from voidbox_lab.spec.api import Health

_KEYS = {"summary": "One key", "value": {"ANTHROPIC_API_KEY": "…"}}


def routes(daemon: Daemon) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["daemon"], route_class=Route)

    @router.get("/v1/health", operation_id="getHealth", summary="The daemon about itself")
    async def health() -> Health:
        return daemon.health()

    @router.post(
        "/v1/credentials", status_code=204, operation_id="addCredentials", summary="Hand the daemon model keys"
    )
    async def credentials(
        keys: Annotated[dict[str, str], Body(max_length=64, openapi_examples={"one": _KEYS})],
    ) -> Response:
        """By environment variable name; kept in memory until the daemon ends, never written, never read back."""
        daemon.add_keys(keys)
        return Response(status_code=204)

    @router.post(
        "/v1/shutdown",
        status_code=202,
        operation_id="shutDown",
        summary="End the daemon, cancelling what runs",
        responses=errors(_409="`if_idle` was asked for, and something runs."),
    )
    async def shutdown(if_idle: Annotated[bool, Query(description="Only if nothing runs.")] = False) -> Health:
        if if_idle and daemon.busy:
            raise UserError("The daemon is busy; wait for its runs to end, or cancel them.", cause="busy")
        daemon.stop()
        return daemon.health()

    return router

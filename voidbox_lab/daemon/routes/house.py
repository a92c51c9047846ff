"""The daemon itself: health, model keys, the end."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.openapi import Route, errors
from voidbox_lab.errors import UserError
from voidbox_lab.spec.api import Health
from voidbox_lab.spec.overview import Overview

DAY_S = 86400.0
_KEYS = {"summary": "One key", "value": {"ANTHROPIC_API_KEY": "…"}}


def routes(daemon: Daemon) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["daemon"], route_class=Route)

    @router.get("/v1/health", operation_id="getHealth", summary="The daemon about itself")
    async def health() -> Health:
        return daemon.health()

    @router.get("/v1/overview", operation_id="getOverview", summary="All runs and boxes at a glance")
    async def overview(
        since: Annotated[
            float | None,
            Query(
                ge=0,
                le=1e10,
                allow_inf_nan=False,
                description="UNIX time: spending of runs begun since then; without it, in the last 24 hours.",
            ),
        ] = None,
        limit: Annotated[
            int, Query(ge=0, le=1000, description="Most runs to list besides those in progress.")
        ] = 20,
    ) -> Overview:
        """Made to be asked again and again; that alone does not keep an idle daemon from leaving."""
        return await daemon.lookout.overview(time.time() - DAY_S if since is None else since, limit)

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

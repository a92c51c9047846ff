"""The HTTP API as one ASGI application: routes (`routes/`), their description (`openapi`), bounds on requests.

Shapes are in `voidbox_lab.spec`. Who may ask, and how often, is the listener's: see `serve` and `tcp`.
"""

from __future__ import annotations

from typing import Any, cast

from fastapi import FastAPI

from voidbox_lab import __version__
from voidbox_lab.daemon import openapi, problem, routes
from voidbox_lab.daemon.activity import Bounded
from voidbox_lab.daemon.core import Daemon


def create(daemon: Daemon) -> FastAPI:
    """The API of `daemon`."""
    app = _routed(daemon)
    app.add_middleware(problem.AlwaysProblems)
    app.add_middleware(Bounded, activity=daemon.activity)
    return app


def document() -> dict[str, Any]:
    """The OpenAPI document, without a daemon."""
    # Routes are only looked at; none is called, so none misses its daemon.
    return openapi.describe(_routed(cast("Daemon", None)))


def _routed(daemon: Daemon) -> FastAPI:
    app = FastAPI(
        title="voidbox-lab",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        # A redirect's target would be made of the client's Host header.
        redirect_slashes=False,
    )
    app.router.route_class = openapi.Route
    for made in routes.ALL:
        app.include_router(made(daemon))
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    problem.install(app, lambda scope: openapi.allowed(app, scope))
    return app

"""Handlers of the server extension: the part of the daemon's API that JupyterLab's panel needs, and no more.

Each asks the Jupyter server who the user is and whether they may (`authenticated`, `authorized`): the daemon
trusts whoever reaches it. None submits a run, hands over keys or opens a shell.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web
from tornado.iostream import StreamClosedError

from voidbox_lab.client.protocol import run as run_path
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.jupyter.upstream import Upstream

PROBLEM = "application/problem+json"
SLOW_S = 60.0
"""Seconds that a browser gets to take a piece of a stream; a suspended one holds a place among the few."""
_REFUSED = {401, 421}
"""By a daemon elsewhere: between it and this server, and nothing the browser's user could log in to."""


class Handler(APIHandler):
    """What all share; without a method of its own it answers nothing."""

    auth_resource = "voidbox"

    def initialize(self, upstream: Upstream) -> None:
        """Called by tornado."""
        self.upstream = upstream

    async def relay(self, method: str, path: str, *taken: str) -> None:
        """Answer as the daemon does; of the query `taken` is passed on."""
        try:
            answer = await self.upstream.ask(method, path, self.query(*taken))
        except VoidboxError as e:
            await self.fail(e)
        else:
            await self.say(answer.status, answer.media_type, answer.body)

    async def say(self, status: int, media_type: str, body: bytes) -> None:
        """Answer with what the daemon said."""
        if status in _REFUSED:
            await self.fail(
                ProviderError("The daemon that VOIDBOX_DAEMON names refuses this server's token or name for it.")
            )
            return
        self.set_status(status)
        self.set_header("Cache-Control", "no-store")
        await self.finish(body, set_content_type=media_type)

    async def fail(self, error: VoidboxError) -> None:
        """Answer with an error of this side, in the daemon's form of one."""
        status = 429 if isinstance(error, LimitExceeded) else 422 if isinstance(error, UserError) else 503
        body = {
            "type": f"https://voidbox-lab.org/errors/{error.kind}",
            "title": type(error).__name__,
            "status": status,
            "detail": error.message,
            "error": error.to_dict(),
        }
        self.set_status(status)
        self.set_header("Cache-Control", "no-store")
        await self.finish(json.dumps(body), set_content_type=PROBLEM)

    def query(self, *taken: str) -> Mapping[str, str]:
        """Those of the request's parameters; what they hold is the daemon's to check."""
        found = {name: self.get_query_argument(name, None) for name in taken}
        return {name: value for name, value in found.items() if value is not None}


class OverviewHandler(Handler):
    """All at a glance. Asked again and again by an open window, which is not somebody at work there."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """`getOverview`."""
        try:
            answer = await self.upstream.ask("GET", "/v1/overview", self.query("since", "limit"))
            if answer.status == 404:
                raise ProviderError(
                    "The daemon that runs is of an earlier release and has no overview; end it with "
                    "`voidbox daemon stop`, and the next run starts a new one.",
                    cause="version",
                )
        except VoidboxError as e:
            await self.fail(e)
        else:
            await self.say(answer.status, answer.media_type, answer.body)


class RunHandler(Handler):
    """One run. Asked again and again as well."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """`getRun`."""
        await self.relay("GET", run_path(run))


class ActionHandler(Handler):
    """What a user may do with a run from outside of its notebook."""

    @web.authenticated
    @authorized
    async def post(self, run: str, action: str) -> None:
        """`cancelRun`, `pauseRun`, `resumeRun`."""
        await self.relay("POST", run_path(run, then=f"/{action}"))


class EventsHandler(Handler):
    """A run's events as they come. Looking on is not work either."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self, run: str) -> None:
        """`followRun`; ends when the run, the daemon or the browser's interest does."""
        params = self.query("after", "tail", "follow")
        last = self.request.headers.get("Last-Event-ID")
        headers = {"Last-Event-ID": last} if last else {}
        path = run_path(run, then="/events")
        try:
            async with self.upstream.stream(path, params, headers) as response:
                media_type = response.headers.get("content-type", "")
                if not response.is_success:
                    await self.say(response.status_code, media_type, response.content)
                    return
                self.set_header("Content-Type", media_type)
                self.set_header("Cache-Control", "no-store")
                # nginx, before a JupyterHub for instance, would keep events back.
                self.set_header("X-Accel-Buffering", "no")
                async for chunk in response.aiter_raw():
                    self.write(chunk)
                    await asyncio.wait_for(self.flush(), SLOW_S)
        except (StreamClosedError, TimeoutError):
            self.request.connection.close()  # type: ignore[union-attr]  # an HTTP/1 connection, which has it
            return
        except VoidboxError as e:
            if self._headers_written:
                # Told in the stream's own way; it can no longer be a status.
                self.write(f"event: failed\ndata: {json.dumps({'error': e.to_dict()})}\n\n")
            else:
                await self.fail(e)
                return
        await self.finish()


_API = r"/voidbox/api"
_RUN = r"/runs/(run-[0-9a-f]{12})"
ROUTES: list[tuple[str, type[Handler]]] = [
    (rf"{_API}/overview", OverviewHandler),
    (rf"{_API}{_RUN}", RunHandler),
    (rf"{_API}{_RUN}/(cancel|pause|resume)", ActionHandler),
    (rf"{_API}{_RUN}/events", EventsHandler),
]
"""Paths below the server's base URL, and who answers them."""

"""``python -m voidbox_lab.bench.mock_daemon ROOT STORE``: the real daemon over boxes in memory, all below ROOT.

On ``gateway.sock`` the same server streams bytes that were prepared: ``GET /EVENTS``, so many events in chunks as
large as a page of the real ones. That is what delivering them costs at least.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sse_starlette import EventSourceResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from voidbox_lab.bench.mock import MockBackend
from voidbox_lab.daemon.routes.runs import PAGE
from voidbox_lab.daemon.serve import main
from voidbox_lab.settings import Settings
from voidbox_lab.spec.events import AgentText, Event


def settings(root: Path, store: str = "sqlite") -> Settings:
    """A daemon's settings below `root`, whose path must be short: a socket's may have 107 bytes."""
    return Settings(cache=root / "cache", data=root / "data", runtime=root / "run", shm=root / "shm", store=store)


class _Streaming(MockBackend):
    @property
    def gateway_app(self) -> ASGIApp:
        """Prepared bytes."""
        return _prepared


async def _prepared(scope: Scope, receive: Receive, send: Send) -> None:
    count = int(scope["path"].strip("/"))
    event = Event(seq=count, run="run-0123456789ab", at=1.7e9, stage="ticks", body=AgentText(text=str(count)))
    data = f"id: {count}\nevent: event\ndata: {event.model_dump_json()}\n\n".encode()
    page = data * PAGE

    async def pages() -> AsyncIterator[bytes]:
        for _ in range(count // PAGE):
            yield page
        if rest := count % PAGE:
            yield data * rest

    await EventSourceResponse(pages(), sep="\n")(scope, receive, send)


@asynccontextmanager
async def _backend(_settings: Settings) -> AsyncIterator[MockBackend]:
    yield _Streaming()


if __name__ == "__main__":
    sys.exit(main(_backend, settings(Path(sys.argv[1]), sys.argv[2])))

"""Clients against connections that break: events come once each, in order, and giving up is bounded."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.daemon.conftest import house, settings
from tests.daemon.test_api import spec
from tests.engine.doubles import says
from voidbox_lab.client import AsyncClient, Client, keys, protocol
from voidbox_lab.errors import ProviderError, UserError

__all__ = ["house", "settings"]


class Cutter:
    """A relay in front of a UNIX socket that cuts each connection's answers after so many bytes."""

    def __init__(self, path: Path, to: Path, after: int) -> None:
        self.cuts = 0
        self._to, self._after = to, after
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._to))
            threading.Thread(target=self._up, args=(near, far), daemon=True).start()
            threading.Thread(target=self._down, args=(near, far), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _down(self, near: socket.socket, far: socket.socket) -> None:
        left = self._after
        with suppress(OSError):
            while left > 0 and (data := far.recv(min(left, 65536))):
                near.sendall(data)
                left -= len(data)
        self.cuts += left <= 0
        for end in (near, far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # close alone would wait for the thread that reads

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def cut(house: Any, tmp_path: Path) -> Iterator[Any]:
    """Settings whose socket is a relay that cuts, and the relay."""
    runtime = Path(f"{house.settings.runtime}-cut")
    runtime.mkdir(mode=0o700)
    cutter = Cutter(runtime / "daemon.sock", house.settings.socket, 3000)
    yield replace(house.settings, runtime=runtime), cutter
    cutter.close()
    for path in runtime.iterdir():
        path.unlink()
    runtime.rmdir()


@pytest.mark.anyio
async def test_async_events_survive_cuts(house: Any, cut: Any) -> None:
    settings_, cutter = cut
    house.backend.scripts["one"] = says(*[f"word {i} " for i in range(60)], result="done")
    record = await house.client.submit(spec("one", "two", "three"))
    whole = [e async for e in house.client.events(record.id)]
    async with AsyncClient(settings_, start=False, env={}) as client:
        assert [e async for e in client.events(record.id)] == whole
    assert cutter.cuts > 0


@pytest.mark.anyio
async def test_sync_events_survive_cuts(house: Any, cut: Any) -> None:
    settings_, cutter = cut
    record = await house.client.submit(spec("one", "two", "three"))
    whole = [e async for e in house.client.events(record.id)]

    def read() -> list[Any]:
        with Client(settings_, start=False, env={}) as client:
            return list(client.events(record.id))

    assert await anyio.to_thread.run_sync(read) == whole
    assert cutter.cuts > 0


@pytest.mark.anyio
async def test_giving_up_is_bounded(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RESUMES", 2)
    record = await house.client.submit(spec("slow"))
    stream = house.client.events(record.id)
    await anext(stream)
    away = house.settings.socket.rename(house.settings.socket.with_suffix(".away"))
    other = AsyncClient(house.settings, start=False, env={})
    async with other:
        with pytest.raises(ProviderError, match="lost") as caught:
            async for _ in other.events(record.id):
                pass
    assert caught.value.cause == "daemon-lost"
    away.rename(house.settings.socket)
    await stream.aclose()
    await house.client.cancel(record.id)


@pytest.mark.anyio
async def test_a_client_that_was_not_entered(settings: Any) -> None:
    with pytest.raises(UserError, match="async with"):
        await AsyncClient(settings).health()
    with pytest.raises(UserError, match="with Client"):
        Client(settings).health()


def test_keys_are_found_by_name() -> None:
    env = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": " ", "HOME": "/", "VOIDBOX_API_KEY_EXAMPLE_ORG": "b"}
    assert keys.found(env) == {"ANTHROPIC_API_KEY": "a", "VOIDBOX_API_KEY_EXAMPLE_ORG": "b"}

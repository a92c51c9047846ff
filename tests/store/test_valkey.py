"""A real server against the contract, and what is its own: its death, a password nobody sees, two writers."""

from __future__ import annotations

import logging
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from tests.ports import free_port
from tests.store.conformance import Place, StoreContract, end, run_spec, text
from tests.store.servers import Server
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.store import Entry, open_store, valkey_link
from voidbox_lab.store import valkey as module
from voidbox_lab.store.valkey import ValkeyStore
from voidbox_lab.store.valkey_link import Address

pytestmark = pytest.mark.anyio
SECRET = "s3cr3t-of-the-store"


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """One server for what each test keeps under a prefix of its own."""
    server = Server()
    server.start()
    yield server
    server.close()


@pytest.fixture
def url(shared: Server, request: pytest.FixtureRequest) -> str:
    return f"{shared.url}?prefix=t{abs(hash(request.node.nodeid))}"


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Makes servers for one test."""
    servers: list[Server] = []

    def start(**how: object) -> Server:
        server = Server(**how)  # type: ignore[arg-type]
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()


class TestValkey(StoreContract):
    @pytest.fixture
    def place(self, url: str, tmp_path: Path) -> Place:
        return url, tmp_path

    async def spoil(self, place: Place, run: str) -> None:
        store = await ValkeyStore.open(place[0])
        record = await store._field(run, "record")
        spoilt = record.replace(b'"created_at":', b'"created":')
        await store._link.call("HSET", store._run(run), "record", spoilt)
        await store.aclose()


async def test_acknowledged_events_survive_the_servers_kill_9(serve: Callable[..., Server]) -> None:
    """And an open store goes on with the next server, without being opened again."""
    server = serve()
    store = await ValkeyStore.open(server.url)
    await store.create_run("r1", run_spec(), at=0)
    acknowledged = 0
    async with anyio.create_task_group() as tasks:

        async def kill() -> None:
            await anyio.sleep(0.3)
            server.signal(signal.SIGKILL)
            await anyio.sleep(0.3)
            await anyio.to_thread.run_sync(server.start)

        tasks.start_soon(kill)
        stop = time.monotonic() + 2
        while time.monotonic() < stop:
            acknowledged = (await store.append("r1", [text("a"), text("b"), text("c")]))[-1].seq
    events = await store.read_events("r1", limit=5000)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert await store.count_events("r1") == acknowledged, "an append was lost, or written twice"
    await store.append("r1", [end()])
    await store.aclose()
    server.signal(signal.SIGKILL)
    server.start()
    store = await ValkeyStore.open(server.url)
    assert (await store.get_run("r1")).state == "succeeded"
    await store.aclose()


async def test_a_lost_answer_is_not_a_second_append(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server did it and the connection broke: what is sent again is recognised."""
    store = await ValkeyStore.open(url)
    real, lost = valkey_link.Link._once, []

    async def once(self: valkey_link.Link, command: object, source: str | None) -> object:
        answer = await real(self, command, source)  # type: ignore[arg-type]
        if source is not None and source not in lost:
            lost.append(source)
            raise valkey_link.ConnectionError("gone")
        return answer

    monkeypatch.setattr(valkey_link.Link, "_once", once)
    await store.create_run("r1", run_spec(), at=0)
    assert [e.seq for e in await store.append("r1", [text("a"), text("b")])] == [1, 2]
    assert await store.count_events("r1") == 2
    await store.delete_run("r1", force=True)
    assert len(lost) == 3
    await store.aclose()


async def test_a_server_that_is_away(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said in time, nothing of the call was written, and the store works again when the server does."""
    monkeypatch.setattr(valkey_link, "PAUSES_S", (0.0, 0.1))
    server = serve()
    store = await ValkeyStore.open(server.url)
    await store.create_run("r1", run_spec(), at=0)
    await store.append("r1", [text("a")])
    server.signal(signal.SIGKILL)
    calls = (store.append("r1", [text("b")]), store.get_run("r1"), store.list_runs(), store.count_events("r1"))
    for call in calls:
        with pytest.raises(ProviderError, match="check that server") as caught:
            await call
        assert caught.value.cause == "store"
    with pytest.raises(ProviderError):
        await ValkeyStore.open(server.url)
    server.start()
    assert [e.seq for e in await store.append("r1", [text("c")])] == [2]
    await store.aclose()


async def test_a_server_that_hangs(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_link, "CALL_S", 1.0)
    server = serve()
    store = await ValkeyStore.open(server.url)
    server.signal(signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(ProviderError, match="no answer within 1 s") as caught:
        await store.list_runs()
    assert caught.value.cause == "store"
    assert time.monotonic() - begun < 30
    server.signal(signal.SIGCONT)
    monkeypatch.undo()
    assert await store.list_runs() == []
    await store.aclose()


async def test_a_password_is_nobodys_to_see(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in errors and their tracebacks, nor in the log, nor in what objects say of themselves."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(valkey_link, "PAUSES_S", (0.0,))
    server = serve(password=SECRET, port=free_port())
    good = f"valkey://:{SECRET}@127.0.0.1:{server.port}/0"
    said = []
    store = await ValkeyStore.open(good)
    said += [repr(store._link), repr(store._link.address), store._link.address.label]
    for wrong in (good.replace(SECRET, SECRET + "x"), good.replace(":s3", "nobody:s3"), server.url):
        with pytest.raises(ProviderError) as caught:
            await ValkeyStore.open(wrong)
        said += traceback.format_exception(caught.value)
    with pytest.raises(ProviderError) as caught:
        await store._link.call("NONSENSE", SECRET)
    said += traceback.format_exception(caught.value)
    server.signal(signal.SIGKILL)
    with pytest.raises(ProviderError) as caught:
        await store.list_runs()
    said += traceback.format_exception(caught.value)
    await store.aclose()
    everything = "\n".join([*said, caplog.text])
    assert f"127.0.0.1:{server.port}/0" in everything
    assert "s3cr3t" not in everything


@pytest.mark.parametrize(
    "url",
    [
        f"valkey://:{SECRET}@host:port/0",
        f"valkey://:{SECRET}/x@host",
        f"valkey://:{SECRET}@",
        f"http://:{SECRET}@host",
        f"valkey://host/0?password={SECRET}",
        f"valkey://host/name?{SECRET}=1",
        f"valkeys://:{SECRET}@host/0?ssl_cert_reqs=none",
        f"unix://host-{SECRET}/path",
        f"valkey://[{SECRET}",
        f"valkey://host/0?prefix=a:{SECRET}",
    ],
)
async def test_a_wrong_url_is_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it looks like valkey://") as caught:
        await open_store(url, tmp_path)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


async def test_urls(tmp_path: Path) -> None:
    label = lambda url: Address.parse(url).label  # noqa: E731
    assert label("valkey://u:p%40ss@example.org") == "valkey://example.org:6379/0"
    assert label("rediss://example.org:7000/3?ssl_ca_certs=/ca.pem") == "rediss://example.org:7000/3"
    assert label("unix://u:p@/run/valkey.sock?db=2") == "unix:///run/valkey.sock"
    assert Address.parse("valkey://h/0?prefix=mine").prefix == "mine"
    assert "prefix" not in Address.parse("valkey://h/0?prefix=mine").url
    with pytest.raises(UserError, match="none of sqlite, directory"):
        await open_store("redis", tmp_path)


async def test_stores_on_one_server_are_apart(url: str) -> None:
    one, two = await ValkeyStore.open(url), await ValkeyStore.open(url + "x")
    await one.create_run("r1", run_spec(), at=0)
    assert await two.list_runs() == []
    await two.create_run("r1", run_spec(), at=0)
    await one.delete_run("r1", force=True)
    assert len(await two.list_runs()) == 1
    for store in (one, two):
        await store.aclose()


async def test_two_writers_do_not_mix_up_a_run(url: str) -> None:
    """Each sees what the other wrote and numbers behind it; the record is the fold of both."""
    stores = [await ValkeyStore.open(url) for _ in range(2)]
    await stores[0].create_run("r1", run_spec(), at=0)
    for i in range(20):
        await stores[i % 2].append("r1", [text(str(i))])
    assert [e.body.text for e in await stores[0].read_events("r1")] == [str(i) for i in range(20)]  # type: ignore[union-attr]
    await stores[1].append("r1", [end()])
    await stores[0].append("r1", [end("failed")])
    assert [(await store.get_run("r1")).state for store in stores] == ["succeeded"] * 2
    await stores[0].delete_run("r1")
    with pytest.raises(UserError, match="no run"):
        await stores[1].append("r1", [text("x")])
    for store in stores:
        await store.aclose()


async def test_a_batch_has_a_bound(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCH_BYTES", 1000)
    store = await ValkeyStore.open(url)
    await store.create_run("r1", run_spec(), at=0)
    with pytest.raises(LimitExceeded, match="1000 bytes together"):
        await store.append("r1", [text("x" * 300)] * 4)
    assert await store.count_events("r1") == 0
    await store.aclose()


async def test_nothing_stays_of_a_deleted_run(serve: Callable[..., Server]) -> None:
    store = await ValkeyStore.open(serve().url)
    await store.create_run("r1", run_spec(), at=0)
    await store.append("r1", [Entry(end().body, None, 1), text("x")])
    await store.remember("sha256:" + "a" * 64, "r1", "one")
    await store.delete_run("r1")
    assert await store._link.call("KEYS", "*") == [b"voidbox:order"]
    await store.aclose()


async def test_a_server_that_may_forget_is_warned_of(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(append_only=False)
    store = await ValkeyStore.open(server.url)
    assert "appendonly no" in caplog.text
    await store._link.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    await (await ValkeyStore.open(server.url)).aclose()
    assert "allkeys-lru" in caplog.text
    await store.aclose()

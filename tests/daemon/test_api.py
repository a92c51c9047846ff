"""The API over its real socket: runs, events, artifacts, exec, errors. The engine is real, its boxes are not."""

from __future__ import annotations

import base64
import stat
from typing import Any

import anyio
import httpx
import pytest

from tests.daemon.doubles import fake_backend
from tests.engine.doubles import says
from voidbox_lab import __version__
from voidbox_lab.daemon import core
from voidbox_lab.daemon.pages import encoded
from voidbox_lab.daemon.routes import runs
from voidbox_lab.engine import Capacity
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import Model, RunSpec, Stage, VoidBoxSpec, digest_bytes
from voidbox_lab.spec.api import (
    CheckReport,
    CheckStep,
    ExecExit,
    ExecOutput,
    ExecRequest,
    ExecStarted,
    ExecWaiting,
)
from voidbox_lab.spec.events import AgentText, RunChanged

pytestmark = pytest.mark.anyio


def spec(*names: str, model: str = "scripted:x", **options: Any) -> RunSpec:
    boxes = [VoidBoxSpec(name=n, prompt="p", model=Model.parse(model), **options) for n in names]
    return RunSpec(stages=tuple(Stage(box=b) for b in boxes))


async def test_the_socket_is_private(house: Any) -> None:
    info = house.settings.socket.stat()
    assert stat.S_ISSOCK(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o600


async def test_health(house: Any) -> None:
    health = await house.client.health()
    assert (health.version, health.runs, health.boxes) == (__version__, 0, 0)


async def test_a_run_and_its_events(house: Any) -> None:
    record = await house.client.submit(spec("one"))
    events = [e async for e in house.client.events(record.id)]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert isinstance(events[-1].body, RunChanged)
    assert events[-1].body.state == "succeeded"
    final = await house.client.run(record.id)
    assert final.result == "one done"
    assert final.spec == record.spec == spec("one")
    assert [r.id for r in await house.client.runs()] == [record.id]


async def test_events_resume_by_number_and_by_header(house: Any) -> None:
    record = await house.client.submit(spec("one"))
    events = [e async for e in house.client.events(record.id)]
    assert [e async for e in house.client.events(record.id, after=3)] == events[3:]
    assert [e async for e in house.client.events(record.id, after=events[-1].seq)] == []
    http = house.client._open
    response = await http.get(f"/v1/runs/{record.id}/events", headers={"Last-Event-ID": str(events[-1].seq - 1)})
    assert response.text.count("\nid:") + response.text.startswith("id:") == 1


async def test_events_up_to_now_and_from_the_end(house: Any) -> None:
    """A run that goes on is read to its last event and not waited for; a tail begins so many before that."""
    record = await house.client.submit(spec("slow"))
    with anyio.fail_after(10):
        while (await house.client.run(record.id)).stages["slow"].state != "running":
            await anyio.sleep(0.02)
        now = [e async for e in house.client.events(record.id, follow=False)]
        assert [e.seq for e in now] == list(range(1, len(now) + 1))
        assert not any(isinstance(e.body, RunChanged) and e.body.state != "running" for e in now)
        assert [e async for e in house.client.events(record.id, after=1 << 40, follow=False)] == []
        assert [e async for e in house.client.events(record.id, follow=False, tail=0)] == []
    await house.client.cancel(record.id)
    whole = [e async for e in house.client.events(record.id)]
    assert [e async for e in house.client.events(record.id, tail=2)] == whole[-2:]
    assert [e async for e in house.client.events(record.id, follow=False, tail=1 << 40)] == whole
    assert [e async for e in house.client.events(record.id, after=whole[-2].seq, tail=5)] == whole[-1:]
    with pytest.raises(UserError):
        await anext(house.client.events("run-none", follow=False, tail=1))


async def test_two_readers_see_the_same(house: Any) -> None:
    record = await house.client.submit(spec("one", "two"))
    seen: list[list[Any]] = [[], []]

    async def read(into: list[Any]) -> None:
        into.extend([e async for e in house.client.events(record.id)])

    async with anyio.create_task_group() as tasks:
        for into in seen:
            tasks.start_soon(read, into)
    assert seen[0] == seen[1]
    assert len(seen[0]) > 10


async def test_a_stream_reads_each_event_once_and_never_the_record(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record holds the spec, of up to 64 MiB, and a run has hundreds of thousands of events."""
    store, reads = house.daemon.store, dict[str, list[int]](records=[], events=[], ends=[])

    def counted(name: str, kind: str) -> None:
        real = getattr(store, name)

        async def read(*args: Any, **options: Any) -> Any:
            found = await real(*args, **options)
            reads[kind].append(len(found) if kind == "events" else 1)
            return found

        monkeypatch.setattr(store, name, read)

    for name, kind in (("get_run", "records"), ("read_events", "events"), ("has_ended", "ends")):
        counted(name, kind)
    monkeypatch.setattr(runs, "PAGE", 7)
    drip = [step for i in range(20) for step in (*says(f"word {i}")[:1], ("sleep", 0.06))]
    house.backend.scripts["one"] = [*drip, *says(*"abcdefghijklmnopqrst", result="ok")]
    record = await house.client.submit(spec("one"))
    events = [e async for e in house.client.events(record.id)]
    assert len(reads["events"]) > 10, "it came all at once, which proves nothing"
    assert sum(reads["events"]) == len(events)
    assert max(reads["events"]) <= 7
    assert not reads["records"]
    assert len(reads["ends"]) <= 1 + reads["events"].count(0)
    assert [e async for e in house.client.events(record.id, after=events[-1].seq)] == [], "the end was seen before"


async def test_a_daemon_that_stops_still_tells_the_end(house: Any) -> None:
    """Else a client would start another daemon to learn it."""
    record = await house.client.submit(spec("one"))
    events = [e async for e in house.client.events(record.id)]
    house.daemon.stopped.set()
    sent = bytearray()

    async def send(chunk: bytes) -> None:
        sent.extend(chunk)

    with anyio.fail_after(5):
        await runs.follow_run(house.daemon, record.id, 2, send)
    assert sent == b"".join(map(encoded, events[2:]))


async def test_guest_text_cannot_break_the_stream(house: Any) -> None:
    """Line ends of every kind, and what looks like SSE fields, arrive as they were."""
    nasty = "a\u2028b\u2029c\x85d\r\n\r\nevent: failed\ndata: {}\n\n\x00\x0b\x0c\x1c"
    house.backend.scripts["one"] = says(nasty, result="ok")
    record = await house.client.submit(spec("one"))
    texts = [e.body.text async for e in house.client.events(record.id) if isinstance(e.body, AgentText)]
    assert "".join(texts) == nasty


async def test_cancel_is_idempotent(house: Any) -> None:
    record = await house.client.submit(spec("slow"))
    async for event in house.client.events(record.id):
        if isinstance(event.body, AgentText):
            await house.client.cancel(record.id)
            await house.client.cancel(record.id)
    final = await house.client.cancel(record.id)
    assert final.state == "cancelled"
    assert house.backend.opened == house.backend.closed == 1


async def test_errors_keep_their_kind_and_sentence(house: Any) -> None:
    for call in (house.client.run("nope"), house.client.cancel("nope"), anext(house.client.events("nope"))):
        with pytest.raises(UserError, match="no run 'nope'"):
            await call
    with pytest.raises(UserError, match="no agent 'emacs'"):
        await house.client.submit(spec("one", agent="emacs"))
    with pytest.raises(UserError, match="Not Found"):
        await house.client.run("../../v1/health?x=1")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/runs", {"stages": []}, 422),
        ("POST", "/v1/runs", {"stages": [{"box": {"name": "Not A Name"}}]}, 422),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/runs/x", None, 404),
        ("GET", "/v1/artifacts/sha256:..%2F..%2Fetc", None, 404),
        ("POST", "/v1/exec", {"argv": []}, 422),
        ("PUT", "/v1/health", None, 405),
    ],
)
async def test_every_error_is_a_problem_document(
    house: Any, method: str, path: str, body: Any, status: int
) -> None:
    response = await house.client._open.request(method, path, json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["error"]["kind"] == "user"
    assert problem["detail"] == problem["error"]["message"]
    assert "Traceback" not in response.text


async def test_a_request_that_is_too_large(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voidbox_lab.daemon.activity.MAX_BODY_BYTES", 1000)

    async def unannounced() -> Any:
        for _ in range(4):
            yield b"[" * 500

    with pytest.raises(LimitExceeded):
        await house.client.submit(_big())
    response = await house.client._open.post(
        "/v1/runs", content=unannounced(), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 413


def _big() -> RunSpec:
    return RunSpec(stages=(Stage(box=VoidBoxSpec(name="a", prompt="x" * 2000, model=Model.parse("scripted:x"))),))


async def test_artifacts(house: Any, tmp_path: Any) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"x" * 3_000_000)
    kept = await house.client.upload(path)
    assert (kept.digest, kept.size) == (digest_bytes(path.read_bytes()), 3_000_000)
    assert await house.client.download(kept.digest) == path.read_bytes()
    with pytest.raises(UserError, match="upload it first"):
        await house.client.download("sha256:" + "0" * 64)
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read"):
        await house.client.upload(tmp_path / "nowhere.csv")


async def test_exec_streams_and_gives_the_exit_code(house: Any) -> None:
    events = [e async for e in house.client.execute(ExecRequest(argv=("exit-7",)))]
    assert isinstance(events[0], ExecStarted)
    output = {e.stream: base64.b64decode(e.data) for e in events if isinstance(e, ExecOutput)}
    assert output == {"stdout": b"to stdout\xff", "stderr": b"to stderr"}
    assert isinstance(events[-1], ExecExit)
    assert events[-1].code == 7
    assert house.backend.closed == 1


async def test_exec_says_that_it_waits_for_room(house: Any) -> None:
    request = ExecRequest(argv=("exit-0",), memory_mb=3000)
    stream = house.client.execute(request)
    async with house.daemon.admission.admitted(3000, 1):
        waiting = await anext(stream)
    assert isinstance(waiting, ExecWaiting)
    assert (waiting.reason, waiting.ahead) == ("memory", 0)
    assert waiting.message == "Waiting for room: needs 3096 MiB, 1000 MiB free, 0 in front."
    rest = [type(e) async for e in stream]
    assert (rest[0], rest[-1]) == (ExecStarted, ExecExit), "there is room now"


async def test_the_daemon_looks_at_the_hosts_memory(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No box of ours would free some, so the command is refused instead of waiting."""
    monkeypatch.setattr(core, "available_memory_mb", lambda: 300)
    capacity = Capacity(memory_mb=4096, vcpus=8)
    async with core.Daemon.open(settings, fake_backend, capacity=capacity) as daemon:
        with pytest.raises(ProviderError, match="needs 608 MiB of host memory and 300 MiB are free"):
            async with daemon.admission.admitted(512, 1):
                pytest.fail("there was no room")


async def test_a_client_that_goes_away_ends_its_box(house: Any) -> None:
    async with AsyncExitStackOf(house.client.execute(ExecRequest(argv=("slow",)))) as stream:
        assert isinstance(await anext(stream), ExecStarted)
        assert (await house.client.health()).boxes == 1
    with anyio.fail_after(5):
        while house.backend.closed == 0 or house.daemon.admission.boxes:
            await anyio.sleep(0.02)


class AsyncExitStackOf:
    """Closes an async generator."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def __aenter__(self) -> Any:
        return self.stream

    async def __aexit__(self, *_: object) -> None:
        await self.stream.aclose()


async def test_exec_errors_come_as_errors(house: Any) -> None:
    house.backend.fail = ProviderError("There is no QEMU.", cause="no-qemu")
    with pytest.raises(ProviderError, match="no QEMU"):
        await anext(house.client.execute(ExecRequest(argv=("x",))))
    with pytest.raises(UserError, match="MiB of memory"):
        await anext(house.client.execute(ExecRequest(argv=("x",), memory_mb=99_999)))
    with pytest.raises(UserError, match="Base64"):
        await anext(house.client.execute(ExecRequest(argv=("x",), stdin="%%%")))


async def test_check_reports_what_is_missing(house: Any) -> None:
    events = [e async for e in house.client.check()]
    report = events[-1]
    assert isinstance(report, CheckReport)
    assert not report.ok
    failed = {s.name: s.message for s in report.steps if s.state == "failed"}
    assert "install" in failed["libvirt"]
    assert "boot" not in failed, "a step whose needs failed is not tried"
    assert [e.state for e in events if isinstance(e, CheckStep) and e.name == "libvirt"] == ["started", "failed"]


async def test_keys_stay_in_memory(house: Any, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A key is used, named, and found nowhere on disk, in no answer and in no log."""
    secret = "sk-very-secret-0123456789"
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY"):
        await house.client.submit(spec("one", model="anthropic:claude"))
    caplog.set_level("DEBUG")
    response = await house.client._open.post("/v1/credentials", json={"ANTHROPIC_API_KEY": secret})
    assert response.status_code == 204
    record = await house.client.submit(spec("one", model="anthropic:claude"))
    events = [e.model_dump_json() async for e in house.client.events(record.id)]
    assert (await house.client.health()).keys == ("ANTHROPIC_API_KEY",)
    assert secret not in "".join(events)
    assert secret not in caplog.text
    for path in settings.data.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    bad = await house.client._open.post("/v1/credentials", json={"not a name": secret})
    assert bad.status_code == 422
    assert secret not in bad.text
    bad = await house.client._open.post("/v1/credentials", json={"NAME": {"value": secret}})
    assert secret not in bad.text


async def test_gc(house: Any) -> None:
    assert await house.client.gc() == ["vb-0000000000"]


async def test_shutdown_if_idle_spares_a_busy_daemon(house: Any) -> None:
    record = await house.client.submit(spec("slow"))
    with pytest.raises(UserError, match="busy"):
        await house.client.shutdown(if_idle=True)
    assert not house.daemon.stopping.is_set()
    await house.client.cancel(record.id)
    [_ async for _ in house.client.events(record.id)]
    await house.client.shutdown(if_idle=True)
    assert house.daemon.stopping.is_set()


async def test_the_api_describes_itself(house: Any) -> None:
    document = (await house.client._open.get("/v1/openapi.json")).json()
    assert {"/v1/runs", "/v1/runs/{run}/events", "/v1/exec", "/v1/health"} <= document["paths"].keys()


async def test_a_fault_of_the_daemon_is_an_error_not_a_traceback(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(**_: Any) -> Any:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(house.daemon.store, "list_runs", broken)
    response: httpx.Response = await house.client._open.get("/v1/runs")
    assert response.status_code == 500
    assert response.json()["error"]["cause"] == "internal"
    assert "secret internals" not in response.text

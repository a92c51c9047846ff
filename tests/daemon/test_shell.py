"""Shells by WebSocket: the real daemon, client and guest agent, the agent as a process on this host."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.guest.harness import FACTS, guest_box
from tests.guest.test_commands import gone
from voidbox_lab.box import Box
from voidbox_lab.client.shell import Shell, open_shell
from voidbox_lab.daemon import shell
from voidbox_lab.errors import BoxLost, Cancelled, LimitExceeded, UserError
from voidbox_lab.gateway import serve
from voidbox_lab.spec.api import MAX_SHELL_MESSAGE, SHELL_EVENT, ExecExit, ExecStarted, ExecWaiting, Failed
from voidbox_lab.spec.api import ShellRequest as Request

pytestmark = pytest.mark.anyio


class Guests:
    """In place of the backend's boxes: each one's guest is a process here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.opened: list[dict[str, Any]] = []
        self.begun = self.closed = 0
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.up: list[Box] = []

    async def open(self, **options: Any) -> Box:
        stack = AsyncExitStack()
        self.begun += 1
        directory = self.directory / str(self.begun)
        directory.mkdir()
        made = await stack.enter_async_context(in_a_task(guest_box(directory)))
        self.opened.append(options)

        async def close() -> None:
            self.up.remove(made)
            await self.may_close.wait()
            await stack.aclose()
            self.closed += 1

        made._close = close
        self.up.append(made)
        return made


@asynccontextmanager
async def in_a_task(context: Any) -> AsyncIterator[Any]:
    """`context` entered and left in a task of its own, so that any task may end it."""
    import asyncio

    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    end = asyncio.Event()

    async def live() -> None:
        async with context as value:
            ready.set_result(value)
            await end.wait()

    task = asyncio.create_task(live())
    try:
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        yield ready.result()
    finally:
        end.set()
        await task


@pytest.fixture
async def guests(house: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guests]:
    """Real guests for the daemon of `house`; none may be left open."""
    made = Guests(tmp_path)
    monkeypatch.setattr(house.backend, "open", made.open)
    yield made
    with anyio.fail_after(30):
        while made.closed < len(made.opened) or house.daemon.admission.boxes:
            await anyio.sleep(0.02)


def sh(script: str, **options: Any) -> Request:
    return Request(argv=("sh", "-c", script), cwd="/", **options)


@asynccontextmanager
async def opened(house: Any, request: Request) -> AsyncIterator[Shell]:
    async with open_shell(request, house.settings, start=False) as made:
        yield made


async def until(shown: AsyncIterator[Any], text: bytes) -> bytes:
    """What is shown up to `text`."""
    seen = b""
    with anyio.fail_after(20):
        while text not in seen:
            event = await anext(shown)
            seen += event if isinstance(event, bytes) else b""
    return seen


async def all_of(house: Any, request: Request) -> tuple[bytes, list[Any]]:
    """What a shell shows and what becomes of it, nobody typing."""
    seen, events = b"", []
    with anyio.fail_after(20):
        async with opened(house, request) as made:
            async for event in made.events():
                if isinstance(event, bytes):
                    seen += event
                else:
                    events.append(event)
    return seen, events


@asynccontextmanager
async def dialled(house: Any) -> AsyncIterator[ClientConnection]:
    """A WebSocket without our client's manners."""
    uri = "ws://voidbox/v1/shell"
    socket = await unix_connect(str(house.settings.socket), uri, proxy=None, ping_interval=None, max_size=1 << 20)
    async with socket:
        yield socket


async def failure(socket: ClientConnection) -> Failed:
    """The error with which the daemon ends it, and that it does end it."""
    with anyio.fail_after(20):
        while not isinstance(event := SHELL_EVENT.validate_json(await socket.recv()), Failed):
            pass
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    return event


async def test_a_program_on_a_terminal_from_start_to_exit_code(house: Any, guests: Guests) -> None:
    """Size, kind and environment are as asked; the events come in order."""
    script = 'test -t 0 && stty size; echo "$TERM $MINE"; exit 7'
    seen, events = await all_of(house, sh(script, rows=31, cols=97, term="xterm-256color", env={"MINE": "1"}))
    assert seen == b"31 97\r\nxterm-256color 1\r\n"
    started, ended = events
    assert isinstance(started, ExecStarted)
    assert started.facts == FACTS
    assert isinstance(ended, ExecExit)
    assert (ended.code, ended.signal) == (7, None)
    assert guests.opened[0]["memory_mb"] == 512


async def test_a_signal_is_no_exit_code(house: Any, guests: Guests) -> None:
    _, events = await all_of(house, sh("kill -9 $$"))
    assert (events[-1].code, events[-1].signal) == (None, signal.SIGKILL)


async def test_typing_and_resizing(house: Any, guests: Guests) -> None:
    """Ctrl-C interrupts the program in front, a new size is told to it."""
    script = "trap 'stty size' WINCH; trap 'echo caught; exit 3' INT; echo go; while :; do sleep 0.05; done"
    async with opened(house, sh(script)) as made:
        shown = made.events()
        await until(shown, b"go")
        await made.resize(50, 200)
        await until(shown, b"50 200")
        await made.type(b"\x03")
        await until(shown, b"caught")
        assert [e.code async for e in shown if isinstance(e, ExecExit)] == [3]


async def test_much_in_both_directions_with_a_slow_reader(house: Any, guests: Guests) -> None:
    """Nothing is lost, and nobody keeps it all in memory: the program waits for who reads."""
    size = 3 << 20
    script = f"stty raw -echo; echo go; head -c {size} | tee /dev/null; exit 5"
    got = 0
    async with opened(house, sh(script)) as made, anyio.create_task_group() as tasks:
        shown = made.events()
        await until(shown, b"go")
        tasks.start_soon(made.type, b"x" * size)
        await anyio.sleep(0.5)
        with anyio.fail_after(60):
            async for event in shown:
                if isinstance(event, bytes):
                    got += event.count(b"x")
                    await anyio.sleep(0.001)
                else:
                    assert event.code == 5
    assert got == size


async def test_the_login_shell_is_the_images_own_or_sh(house: Any, guests: Guests) -> None:
    """An image without the shell that its passwd names has a /bin/sh all the same."""
    async with opened(house, Request(cwd="/")) as made:
        shown = made.events()
        await made.type(b"echo is:$SHELL:\nexit 4\n")
        await until(shown, b"is:/")
        assert [e.code async for e in shown if isinstance(e, ExecExit)] == [4]


@pytest.mark.parametrize(("passwd", "expected"), [
    (b"root:x:0:0::/root:/bin/zsh\nagent:x:1000:1000:a:/home/agent:/bin/fish\n", "/bin/fish"),
    (b"root:x:0:0::/root:/bin/zsh\n", "/bin/sh"),
    (b"agent:x:1000:1000:a:/home/agent:bin/fish\n", "/bin/sh"),
    (b"agent:x:1000:1000:a:/home/agent:/bin/\x1bfish\n", "/bin/sh"),
    (b"agent:x:1000:1000:a:/home/agent:/" + b"x" * 5000, "/bin/sh"),
    (b"agent:x:1000:1000\n\xff\xfe\0", "/bin/sh"),
    (UserError("get in the box: no such file.", cause="not-found"), "/bin/sh"),
    (LimitExceeded("Too long.", limit="file"), "/bin/sh"),
])  # fmt: skip
async def test_what_a_box_says_of_its_shell_is_only_tried(passwd: Any, expected: str) -> None:
    class Told:
        async def get(self, path: str, *, max_bytes: int) -> bytes:
            assert path == "/etc/passwd"
            if isinstance(passwd, Exception):
                raise passwd
            assert isinstance(passwd, bytes)
            return passwd

    box: Any = Told()
    assert await shell.login_shell(box) == expected


@pytest.mark.parametrize("gently", [True, False])
async def test_a_client_that_hangs_up_takes_box_and_programs_along(
    house: Any, guests: Guests, gently: bool
) -> None:
    script = "trap '' HUP TERM; sleep 1000 & echo $!; wait; wait"
    async with dialled(house) as socket:
        await socket.send(sh(script).model_dump_json())
        pid = b""
        while b"\n" not in pid:
            message = await socket.recv()
            pid += message if isinstance(message, bytes) else b""
        if not gently:
            socket.transport.abort()
    await gone(int(pid))


async def test_a_client_that_dies_while_its_paste_waits_is_noticed(
    house: Any, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nobody reads from it; that nothing can be sent shows that it is gone."""
    monkeypatch.setattr(shell, "ALIVE_S", 0.2)
    async with dialled(house) as socket:
        await socket.send(sh("stty raw -echo; sleep 1000").model_dump_json())
        while isinstance(await socket.recv(), bytes):
            pass
        with anyio.move_on_after(2) as full:
            while True:
                await socket.send(b"x" * MAX_SHELL_MESSAGE)
        assert full.cancelled_caught, "somebody took all of it"
        socket.transport.abort()
    with anyio.fail_after(20):
        while guests.up:
            await anyio.sleep(0.02)


async def test_a_client_that_leaves_while_it_waits_for_room(house: Any, guests: Guests) -> None:
    """It learns what for; then its place is free."""
    async with opened(house, sh("echo first; sleep 1000", memory_mb=4000)) as first:
        await until(first.events(), b"first")
        async with opened(house, sh("true", memory_mb=4000)) as second:
            waiting = await anext(second.events())
            assert isinstance(waiting, ExecWaiting)
            assert "Waiting for room" in waiting.message
    with anyio.fail_after(20):
        while house.daemon.admission.boxes or guests.up:
            await anyio.sleep(0.02)
    assert len(guests.opened) == 1


async def test_an_idle_shell_hears_that_the_daemon_is_there(
    house: Any, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the daemon is not idle, whatever it does."""
    monkeypatch.setattr(shell, "ALIVE_S", 0.05)
    async with dialled(house) as socket:
        await socket.send(sh("sleep 1000").model_dump_json())
        kinds = [SHELL_EVENT.validate_json(await socket.recv()).type for _ in range(3)]
        assert kinds[-1] == "alive"
        assert house.daemon.busy
        assert house.daemon.activity.requests == 1


async def test_the_room_of_a_stage(house: Any, guests: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell goes with its client, the box stays; the stage's end ends the shell."""
    (house.settings.data / "stage").mkdir()
    async with guest_box(house.settings.data / "stage") as box:

        def find(run: str, stage: str) -> Box:
            if (run, stage) != ("run-1", "one"):
                raise UserError(f"The stage {stage} of {run} does not run.")
            return box

        monkeypatch.setattr(house.daemon.runner, "box", find, raising=False)
        async with opened(house, sh("echo $$; sleep 1000", run="run-1", stage="one")) as made:
            pid = int(await until(made.events(), b"\n"))
        await gone(pid)
        assert (await box.run(["true"], cwd="/")).exit_code == 0
        _, events = await all_of(house, sh("exit 9", run="run-1", stage="one"))
        assert events[-1].code == 9
        with pytest.raises(UserError, match="does not run"):
            await all_of(house, sh("true", run="run-1", stage="two"))
        assert not guests.opened
        async with opened(house, sh("echo on; sleep 1000", run="run-1", stage="one")) as made:
            shown = made.events()
            await until(shown, b"on")
            box._connection.fail(BoxLost("The box is gone.", cause="qemu-died"))
            with pytest.raises(BoxLost, match="The box is gone"):
                await until(shown, b"never")


async def test_no_such_program_or_room(house: Any, guests: Guests) -> None:
    with pytest.raises(UserError, match="no program nothing") as caught:
        await all_of(house, Request(argv=("nothing",), cwd="/"))
    assert caught.value.cause == "not-found"
    with pytest.raises(UserError, match="The shell asks for 100000 MiB"):
        await all_of(house, sh("true", memory_mb=100_000))


async def test_a_daemon_that_ends_says_so(house: Any, guests: Guests) -> None:
    """Before the box is closed: the server does not wait that long."""
    guests.may_close.clear()
    async with opened(house, sh("echo on; sleep 1000")) as made:
        shown = made.events()
        await until(shown, b"on")
        house.daemon.stop()
        with pytest.raises(Cancelled, match="shell was cancelled"):
            await until(shown, b"never")
        assert guests.closed == 0
        guests.may_close.set()


@pytest.mark.parametrize(("first", "said"), [
    ("{", "shell's request"),
    ('{"argv": ["sh"], "rows": 0}', "rows"),
    ('{"argv": ["sh"], "cols": 5000}', "cols"),
    ('{"term": "x\\u001b"}', "term"),
    ('{"term": ""}', "term"),
    ('{"run": "run-1"}', "both run and stage"),
    ('{"nonsense": 1}', "nonsense"),
    (b"{}", "as text"),
])  # fmt: skip
async def test_a_request_that_is_none(house: Any, guests: Guests, first: Any, said: str) -> None:
    async with dialled(house) as socket:
        await socket.send(first)
        error = (await failure(socket)).error
        assert error["kind"] == "user"
        assert said in error["message"]
    assert not guests.opened


async def test_a_client_that_says_nothing(house: Any, guests: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "REQUEST_S", 0.1)
    async with dialled(house) as socket:
        assert (await failure(socket)).error["kind"] == "limit"


@pytest.mark.parametrize("message", ["{}x", '{"type": "resize", "rows": 0, "cols": 80}', '{"type": "other"}'])
async def test_a_message_that_is_none_ends_the_shell(house: Any, guests: Guests, message: str) -> None:
    async with dialled(house) as socket:
        await socket.send(sh("sleep 1000").model_dump_json())
        await socket.send(message)
        assert (await failure(socket)).error["kind"] == "user"


async def last(socket: ClientConnection) -> None:
    """Receive until the end."""
    while True:
        await socket.recv()


async def test_a_message_that_is_too_long_ends_the_shell(house: Any, guests: Guests) -> None:
    async with dialled(house) as socket:
        await socket.send(sh("sleep 1000").model_dump_json())
        await socket.send(b"x" * (MAX_SHELL_MESSAGE + 1))
        with anyio.fail_after(20), pytest.raises(ConnectionClosed) as caught:
            await last(socket)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009  # message too big (RFC 6455, 7.4.1)
    with pytest.raises(UserError, match="put them into a file"):
        async with opened(house, sh("x" * MAX_SHELL_MESSAGE)):
            pass


async def test_only_the_daemons_api_takes_websockets(house: Any) -> None:
    """Nothing else there does, and the gateway's socket, which guests reach, has none at all."""
    with pytest.raises(InvalidHandshake):
        await unix_connect(str(house.settings.socket), "ws://voidbox/v1/health", proxy=None)
    asked = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["type"])
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body"})

    path = house.settings.runtime / "g.sock"
    async with serve.serving_unix(app, path):
        with pytest.raises(InvalidHandshake):
            await unix_connect(str(path), "ws://voidbox/v1/shell", proxy=None)
    assert "websocket" not in asked


async def test_a_shell_outlives_the_wait_for_headers(
    house: Any, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is for HTTP requests, and the upgrade ends it."""
    monkeypatch.setattr(serve, "HEAD_S", 0.3)
    seen, events = await all_of(house, sh("sleep 1; echo still"))
    assert (seen, events[-1].code) == (b"still\r\n", 0)

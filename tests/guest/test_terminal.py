"""Commands with a terminal, through the real agent and connection, with the agent as a process on this host."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.guest.harness import guest_box
from tests.guest.test_commands import gone
from voidbox_lab.box import Box, Process, Pty
from voidbox_lab.errors import BoxLost, UserError
from voidbox_lab.wire.frames import EVENT, WINDOW, encode
from voidbox_lab.wire.protocol import MAX_COLS, MAX_ROWS

pytestmark = pytest.mark.anyio


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """A box whose guest is a process here."""
    async with guest_box(tmp_path) as made:
        yield made


async def terminal(box: Box, script: str, pty: Pty | None = None) -> Process:
    """`script` in a shell on a terminal."""
    return await box.start_exec(["sh", "-c", script], cwd="/", pty=pty or Pty())


async def type_in(process: Process, text: bytes) -> None:
    """Type `text`."""
    assert process.stdin is not None
    await process.stdin.send(text)


async def until(process: Process, text: bytes) -> bytes:
    """What it shows up to `text`."""
    shown = b""
    with anyio.fail_after(20):
        while text not in shown:
            shown += await process.stdout.receive()
    return shown


async def rest(process: Process) -> bytes:
    """What it still shows, to the end."""
    with anyio.fail_after(20):
        return b"".join([chunk async for chunk in process.stdout])


async def test_it_is_the_controlling_terminal_of_a_session_of_its_own(box: Box) -> None:
    """All three streams are one pts, and /dev/tty is it too."""
    script = "tty; test -t 0 && test -t 1 && test -t 2 && echo three; echo mine >/dev/tty; ps -o sid=,pid= -p $$"
    async with await terminal(box, script) as process:
        lines = (await rest(process)).decode().split("\r\n")
        assert lines[0].startswith("/dev/pts/")
        assert lines[1:3] == ["three", "mine"]
        session, pid = lines[3].split()
        assert session == pid == str(process.pid)
        assert [chunk async for chunk in process.stderr] == []
        assert (await process.wait()).code == 0


async def test_the_size_is_as_asked_and_as_changed(box: Box) -> None:
    """The program in front is told of a change by SIGWINCH."""
    script = "stty size; trap 'stty size; exit 7' WINCH; echo set; while :; do sleep 0.05; done"
    async with await terminal(box, script, Pty(37, 113)) as process:
        assert b"37 113\r\n" in await until(process, b"set")
        await process.resize(50, 200)
        assert b"50 200\r\n" in await rest(process)
        assert (await process.wait()).code == 7
        await process.resize(10, 10)  # too late, and harmless


async def test_typed_characters_have_their_meaning(box: Box) -> None:
    """Lines are edited, also by characters of several bytes; Ctrl-C interrupts, Ctrl-D ends."""
    script = 'trap hit=1 INT; echo go; while [ -z "$hit" ]; do sleep 0.05; done; echo interrupted; exec cat'
    async with await terminal(box, script) as process:
        await until(process, b"go")
        await type_in(process, b"\x03")
        await until(process, b"interrupted")
        await type_in(process, "aé\x7fb\n\x04".encode())
        assert "aé\b \bb\r\nab\r\n".encode() in await rest(process)
        assert (await process.wait()).code == 0


async def test_a_paste_that_nobody_reads_waits_and_then_arrives_whole(box: Box) -> None:
    """More than window and terminal hold, typed at a program that is slow to begin reading."""
    size = 3 * WINDOW
    async with await terminal(box, f"stty raw -echo; echo go; sleep 0.5; head -c {size} | md5sum") as process:
        await until(process, b"go")
        await type_in(process, b"x" * size)
        assert hashlib.md5(b"x" * size, usedforsecurity=False).hexdigest().encode() in await rest(process)


async def test_much_output_arrives_whole_before_the_end(box: Box) -> None:
    """The end of the last program does not cut off what it wrote."""
    async with await terminal(box, "stty -opost; seq 200000") as process:
        assert await rest(process) == b"".join(b"%d\n" % n for n in range(1, 200001))


async def test_a_program_that_closes_its_terminal_before_it_exits(box: Box) -> None:
    """The code is its own: the agent does not hang up on a program that is about to end."""
    script = "echo last; exec <&- >&- 2>&-; sleep 0.3; exit 6"
    async with await terminal(box, script) as process:
        assert await rest(process) == b"last\r\n"
        ended = await process.wait()
        assert (ended.code, ended.signal) == (6, None)


async def test_what_is_left_behind_is_killed_and_ends_the_terminal(box: Box) -> None:
    """A job in the background does not hold it open."""
    async with await terminal(box, "trap '' HUP; sleep 1000 & echo $!") as process:
        shown = await rest(process)
        assert (await process.wait()).code == 0
        await gone(int(shown))


@pytest.mark.parametrize("how", ["kill", "terminate", "leave"])
async def test_hanging_up_ends_all_of_it(box: Box, how: str) -> None:
    """Whoever goes away takes the shell and its jobs along, those that ignore SIGTERM and SIGHUP too."""
    process = await terminal(box, "trap '' TERM; (trap '' HUP; sleep 1000) & echo $!; sleep 1000")
    child = int(await until(process, b"\n"))
    with anyio.fail_after(20):
        if how == "kill":
            await process.kill()
        elif how == "terminate":
            process.terminate()
            assert (await process.wait()).signal == signal.SIGHUP
        else:
            async with process:
                pass
        await gone(child)
        await gone(process.pid)


async def test_no_command_gets_the_agents_end(box: Box) -> None:
    """Neither the one on the terminal nor one that is started beside it."""
    async with await terminal(box, "ls /proc/self/fd; sleep 100") as process:
        seen = await until(process, b"3")  # 3: the directory ls reads
        assert seen.split() == [b"0", b"1", b"2", b"3"]
        beside = await box.run(["ls", "-l", "/proc/self/fd"], cwd="/")
        assert b"ptmx" not in beside.stdout
        assert b"pts" not in beside.stdout


async def test_the_agent_keeps_no_terminal(box: Box) -> None:
    """Neither of one that has ended nor of one whose program is not there."""

    def held() -> int:
        fds = list(Path(f"/proc/{agent}/fd").iterdir())
        return sum("pt" in str(fd.readlink()) for fd in fds)

    async with await terminal(box, "echo $PPID; sleep 100") as process:
        agent = int(await until(process, b"\n"))
        assert held() == 2, "what it shows, and what is typed"
    assert held() == 0
    with pytest.raises(UserError, match="no program nothing"):
        await box.start_exec(["nothing"], cwd="/", pty=Pty())
    async with await terminal(box, "true") as process:
        assert (await process.wait()).code == 0
    assert held() == 0


@pytest.mark.parametrize(("rows", "cols"), [(0, 80), (24, 0), (-1, 80), (MAX_ROWS + 1, 80), (24, MAX_COLS + 1)])
async def test_the_host_knows_what_a_size_is(box: Box, rows: int, cols: int) -> None:
    """Neither at the start nor later does another one leave."""
    with pytest.raises(UserError, match="cannot be"):
        Pty(rows, cols)
    async with await terminal(box, "sleep 100") as process:
        with pytest.raises(UserError, match="cannot be"):
            await process.resize(rows, cols)


@pytest.mark.parametrize("size", [{}, {"rows": 24}, {"rows": 0, "cols": 1}, {"rows": 1, "cols": 1 << 16}, [24, 80],
                                  {"rows": True, "cols": 80}, {"rows": "24", "cols": 80}])  # fmt: skip
async def test_so_does_the_guest(box: Box, size: object) -> None:
    """A host that is wrong gets an error, and the agent serves on."""
    call = box._connection.open("exec", argv=["true"], cwd="/", pty=size)
    with pytest.raises(UserError, match="rows"):
        await call.bounded_result(10)
    async with await terminal(box, "sleep 100") as process:
        await process._call.tell(resize=size)
        with pytest.raises(UserError, match="rows"):
            await process._call.bounded_result(10)
        await gone(process.pid)
    assert (await box.run(["true"], cwd="/")).exit_code == 0


async def test_only_a_terminal_has_a_size(box: Box) -> None:
    """The host does not ask, and the guest would refuse."""
    async with await box.start_exec(["sleep", "100"], cwd="/", stdin=True) as process:
        with pytest.raises(UserError, match="no terminal"):
            await process.resize(24, 80)
        await process._call.tell(resize={"rows": 24, "cols": 80})
        with pytest.raises(UserError, match="without a terminal"):
            await process._call.bounded_result(10)


async def test_an_event_for_an_operation_that_takes_none(box: Box) -> None:
    """It fails that operation alone."""
    call = box._connection.open("telemetry", interval_s=1)
    await call.event()
    await call.tell(resize={"rows": 24, "cols": 80})
    with pytest.raises(UserError, match="no events"):
        await call.bounded_result(10)
    assert (await box.run(["true"], cwd="/")).exit_code == 0


async def test_an_event_that_is_no_json_ends_the_connection(box: Box) -> None:
    """As any frame that is none."""
    process = await terminal(box, "sleep 100")
    process._call._enqueue(encode(EVENT, process._call.stream, b"\xff{"))
    with pytest.raises(BoxLost):
        await process._call.bounded_result(10)

"""Commands through the real agent and the real connection, with the agent as a process on this host."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.guest.harness import descendants, guest_box
from voidbox_lab.box import Box
from voidbox_lab.errors import Cancelled, LimitExceeded, ProviderError, UserError
from voidbox_lab.spec import Rlimits
from voidbox_lab.wire.frames import WINDOW

pytestmark = pytest.mark.anyio


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """A box whose guest is a process here."""
    async with guest_box(tmp_path) as made:
        yield made


async def test_streams_and_exit_code_arrive(box: Box) -> None:
    """A command that fails is a result."""
    done = await box.run(["sh", "-c", "echo out; echo err >&2; exit 3"], cwd="/")
    assert (done.exit_code, done.signal, done.stdout, done.stderr) == (3, None, b"out\n", b"err\n")


async def test_a_signal_is_not_an_exit_code(box: Box) -> None:
    """As waitpid(2) tells them apart."""
    done = await box.run(["sh", "-c", "kill -9 $$"], cwd="/")
    assert (done.exit_code, done.signal) == (None, signal.SIGKILL)


async def test_nothing_is_inherited(box: Box) -> None:
    """Environment: ours and the caller's, not the agent's. Descriptors: three. Signals: default."""
    done = await box.run(["env"], cwd="/", env={"MINE": "1"})
    names = {line.split(b"=")[0] for line in done.stdout.splitlines()}
    assert names == {b"PATH", b"HOME", b"USER", b"LOGNAME", b"LANG", b"MINE"}
    done = await box.run(["ls", "/proc/self/fd"], cwd="/")
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3: the directory ls reads
    done = await box.run(["grep", "SigIgn", "/proc/self/status"], cwd="/")
    assert int(done.stdout.split()[1], 16) == 0


async def test_a_descriptor_that_is_not_close_on_exec_is_not_inherited(tmp_path: Path) -> None:
    """`spawn` relies on no flag that somebody may have forgotten."""
    patch = "import os; os.set_inheritable(os.open('/dev/null', os.O_RDONLY), True)"
    async with guest_box(tmp_path, patch) as box:
        done = await box.run(["ls", "/proc/self/fd"], cwd="/")
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]


async def test_stdin_bytes_and_end(box: Box) -> None:
    """More than a window and a pipe hold goes in and comes out."""
    data = os.urandom(3 * WINDOW)
    done = await box.run(["cat"], cwd="/", stdin=data)
    assert done.stdout == data


async def test_stdin_stream(box: Box) -> None:
    """A conversation, then end of file."""
    async with await box.start_exec(["cat"], cwd="/", stdin=True) as process:
        assert process.stdin is not None
        for word in (b"one", b"two"):
            await process.stdin.send(word)
            assert await process.stdout.receive() == word
        await process.stdin.aclose()
        assert (await process.wait()).code == 0


async def test_stdin_nobody_reads_does_not_hang(box: Box) -> None:
    """A command may end, or close its input, without reading it."""
    with anyio.fail_after(20):
        assert (await box.run(["true"], cwd="/", stdin=bytes(4 * WINDOW))).exit_code == 0
        done = await box.run(["sh", "-c", "exec <&-; sleep 0.2; echo ok"], cwd="/", stdin=bytes(4 * WINDOW))
        assert done.stdout == b"ok\n"


@pytest.mark.parametrize(
    ("argv", "cwd", "cause"),
    [
        (["no-such-program"], "/", "not-found"),
        (["/no/such"], "/", "not-found"),
        (["true"], "/no/such", "not-found"),
        (["/etc/passwd"], "/", "denied"),
        (["true"], "relative", "bad-request"),
        ([""], "/", "bad-request"),
        (["a\0b"], "/", "bad-request"),
    ],
)
async def test_what_cannot_start_is_a_typed_error(box: Box, argv: list[str], cwd: str, cause: str) -> None:
    """Between fork and exec nothing gets lost."""
    with pytest.raises(UserError) as caught:
        await box.run(argv, cwd=cwd)
    assert caught.value.cause == cause


async def test_an_unrunnable_file_is_typed(box: Box, tmp_path: Path) -> None:
    """ENOEXEC."""
    path = tmp_path / "junk"
    path.write_bytes(b"\0\0junk")
    path.chmod(0o755)
    with pytest.raises(UserError) as caught:
        await box.run([str(path)], cwd="/")
    assert caught.value.cause == "not-executable"


async def test_a_failure_of_the_agent_to_explain_costs_one_command(tmp_path: Path) -> None:
    """Not the box: what it looks at then may be of a hostile program's making."""
    patch = "from voidbox_guest.processes import Commands\nCommands.explain = lambda *_: [][1]"
    async with guest_box(tmp_path, patch) as box:
        for _ in range(10):
            with pytest.raises(ProviderError, match="IndexError"):
                await box.run(["/etc/passwd"], cwd="/")
        assert (await box.run(["true"], cwd="/")).exit_code == 0


async def test_limits_bind(box: Box) -> None:
    """rlimits reach the command and its children."""
    done = await box.run(["sh", "-c", "sh -c 'ulimit -n; ulimit -c'"], cwd="/", limits=Rlimits(open_files=77))
    assert done.stdout.split() == [b"77", b"0"]


async def test_timeout_kills_the_whole_tree(box: Box, tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL for those that ignore it; children and grandchildren too."""
    script = f"trap '' TERM; (trap '' TERM; sleep 300) & echo $! > {tmp_path}/child; sleep 300 & wait; wait"
    began = time.monotonic()
    done = await box.run(["sh", "-c", script], cwd="/", timeout_s=0.3)
    assert done.timed_out
    assert done.signal == signal.SIGKILL
    assert 2 < time.monotonic() - began < 8
    await gone(int((tmp_path / "child").read_text()))


async def test_timeout_lets_a_polite_command_finish(box: Box) -> None:
    """SIGTERM comes first, and its handler's words arrive."""
    done = await box.run(["sh", "-c", "trap 'echo bye; exit 7' TERM; sleep 30 & wait"], cwd="/", timeout_s=0.3)
    assert (done.timed_out, done.exit_code, done.stdout) == (True, 7, b"bye\n")


async def test_what_a_command_leaves_behind_dies_with_it(box: Box) -> None:
    """A background child holds the outputs: it gets a moment, then the end."""
    began = time.monotonic()
    done = await box.run(["sh", "-c", "sleep 300 & echo $!"], cwd="/")
    assert time.monotonic() - began < 5
    await gone(int(done.stdout))


async def test_kill_ends_it_and_leaving_the_context_kills(box: Box) -> None:
    """kill is idempotent; nothing outlives the context."""
    async with await box.start_exec(["sleep", "300"], cwd="/") as process:
        pid = process.pid
        await process.kill()
        await process.kill()
        with pytest.raises(Cancelled):
            await process.wait()
    await gone(pid)
    async with await box.start_exec(["sh", "-c", "while :; do echo x; done"], cwd="/") as process:
        pid = process.pid
    await gone(pid)


async def test_cancelling_the_caller_kills_the_command(box: Box) -> None:
    """Structured: no command without somebody who waits for it."""
    pids = []
    with anyio.move_on_after(0.5):
        process = await box.start_exec(["sleep", "300"], cwd="/")
        async with process:
            pids.append(process.pid)
            await process.wait()
    await gone(pids[0])
    assert box._connection.open_calls == 0


async def test_a_slow_reader_blocks_nobody_else(box: Box) -> None:
    """An unread firehose costs its window; others run, and it goes on when read."""
    script = "head -c 4000000 /dev/zero"
    async with await box.start_exec(["sh", "-c", script], cwd="/") as slow:
        await anyio.sleep(0.3)
        with anyio.fail_after(10):
            for _ in range(5):
                assert (await box.run(["echo", "hi"], cwd="/")).stdout == b"hi\n"
        call = box._connection._calls[slow.stdout._call.stream]
        assert len(call._buffers[1]) == WINDOW
        total = 0
        async for chunk in slow.stdout:
            total += len(chunk)
        assert total == 4_000_000
        assert (await slow.wait()).code == 0


async def test_output_survives_the_exit_of_its_command(box: Box) -> None:
    """Exit is known before the output is read; the output waits in the pipe for as long as it takes."""
    async with await box.start_exec(["sh", "-c", "head -c 300000 /dev/zero"], cwd="/") as process:
        await anyio.sleep(0.2)
        assert await process.stdout.receive(1) == b"\0"
        total = 1
        async for chunk in process.stdout:
            total += len(chunk)
        assert total == 300_000
        assert (await process.wait()).code == 0


async def test_run_bounds_its_output(box: Box) -> None:
    """A firehose ends in LimitExceeded, and is dead."""
    with pytest.raises(LimitExceeded) as caught:
        await box.run(["yes"], cwd="/", max_output=100_000)
    assert caught.value.limit == "output"


async def test_two_hundred_at_once(box: Box) -> None:
    """Each gets its own words back."""
    answers: dict[int, bytes] = {}

    async def one(number: int) -> None:
        done = await box.run(["sh", "-c", f"cat; echo {number}"], cwd="/", stdin=b"in ")
        answers[number] = done.stdout

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(one, number)
    assert answers == {n: b"in %d\n" % n for n in range(200)}
    assert box._connection.open_calls == 0


async def test_more_commands_than_a_box_takes_are_refused(tmp_path: Path) -> None:
    """One too many is an error the caller can read; the others live."""
    async with guest_box(tmp_path, "from voidbox_guest import processes; processes.MAX_EXECS = 8") as box:
        held = [await box.start_exec(["sleep", "60"], cwd="/") for _ in range(8)]
        with pytest.raises(LimitExceeded, match="8 commands") as caught:
            await box.start_exec(["true"], cwd="/")
        assert caught.value.limit == "processes"
        await held.pop().kill()
        assert (await box.run(["true"], cwd="/")).exit_code == 0


async def test_a_burst_that_is_cancelled_at_once_leaves_nothing(box: Box) -> None:
    """Most of them never start; each is answered, and the box is as before."""
    with anyio.fail_after(30):
        calls = [box._connection.open("exec", argv=["sleep", "61.7"], cwd="/", stdin=True) for _ in range(400)]
        for call in calls:
            await call.send(0, b"input that nobody will read")
            call.abandon()
        while box._connection.open_calls:
            await anyio.sleep(0.02)
        for call in calls:
            with pytest.raises(Cancelled):
                await call.result()
        assert (await box.run(["pgrep", "-c", "-f", "^sleep 61.7$"], cwd="/")).stdout == b"0\n"


async def test_a_random_script_of_bytes_is_carried_unchanged(box: Box, tmp_path: Path) -> None:
    """Binary output, both channels at once, by digest."""
    (tmp_path / "a").write_bytes(os.urandom(2_000_000))
    (tmp_path / "b").write_bytes(os.urandom(2_000_000))
    done = await box.run(["sh", "-c", f"cat {tmp_path}/a & cat {tmp_path}/b >&2; wait"], cwd="/")
    for data, name in ((done.stdout, "a"), (done.stderr, "b")):
        assert hashlib.sha256(data).digest() == hashlib.sha256((tmp_path / name).read_bytes()).digest()


async def test_orphans_are_reaped(tmp_path: Path) -> None:
    """Daemons that detach from everything end up with the agent, as with PID 1, and leave no zombies."""
    async with guest_box(tmp_path) as box:
        for _ in range(3):
            await box.run(["sh", "-c", "(setsid sh -c 'sleep 0.1' &) ; exit 0"], cwd="/")
        await anyio.sleep(0.5)
        done = await box.run(["sh", "-c", "ps -o stat= --ppid $PPID"], cwd="/")
        assert not [line for line in done.stdout.splitlines() if line.startswith(b"Z")]


async def test_commands_that_fail_to_start_leave_nothing_in_the_agent(box: Box) -> None:
    """No descriptor per failure, however it failed."""
    # The guest agent gets a moment to see that the command which counts has started.
    count = ["sh", "-c", "sleep 0.2; ls /proc/$PPID/fd | wc -l"]
    before = int((await box.run(count, cwd="/")).stdout)
    for _ in range(5):
        for argv, cwd in ((["no-such"], "/"), (["/etc/passwd"], "/"), (["true"], "/no/such")):
            with pytest.raises(UserError):
                await box.run(argv, cwd=cwd)
        with pytest.raises(LimitExceeded):
            await box.run(["yes"], cwd="/", max_output=1000)
    assert int((await box.run(count, cwd="/")).stdout) == before


async def test_losing_the_host_kills_everything(tmp_path: Path) -> None:
    """The connection ends: no command survives its box's agent."""
    async with guest_box(tmp_path) as box:
        process = await box.start_exec(["sh", "-c", "sleep 300 & echo $!; sleep 300"], cwd="/")
        child = int(await process.stdout.receive())
        assert child in descendants(process.pid)
    await gone(process.pid)
    await gone(child)


async def gone(pid: int) -> None:
    """`pid` is dead, or a zombie, within a few seconds."""
    with anyio.fail_after(5):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                return
            if state in "ZX":
                return
            await anyio.sleep(0.02)

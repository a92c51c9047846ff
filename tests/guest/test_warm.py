"""lab-agent as a fork of the guest agent: nobody can tell it from lab-agent started by execve."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.guest.harness import guest_box
from tests.guest.test_commands import gone
from tests.lab_agent.agent_process import place
from voidbox_lab.box import Box, Completed
from voidbox_lab.errors import UserError
from voidbox_lab.resources import data_dir
from voidbox_lab.spec import Rlimits

pytestmark = pytest.mark.anyio

_LAUNCHER = """#!{python} -IS
import os, sys
sys.path.insert(0, "{code}")
from lab_agent.main import main
os._exit(main(sys.argv[1:], dict(os.environ), sys.stdin.buffer, sys.stdout.buffer))
"""

_PROBE = """
import gc, json, os, resource, signal, sys, time

def open_descriptors():
    found = []
    for fd in range(4096):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.append(fd)
    return found

def main(argv, env, stdin, stdout):
    what = argv[0]
    if what == "facts":
        streams = [sys.stdin, sys.stdout, sys.stderr]
        text = {
            "argv": [sys.argv, argv], "environ": [dict(os.environ), env], "descriptors": open_descriptors(),
            "signals": {str(n): str(signal.getsignal(n)).split(" at ")[0] for n in range(1, 32)},
            "wakeup": signal.set_wakeup_fd(-1), "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "streams": [[s.encoding, s.errors, s.line_buffering, s.fileno(), s.mode] for s in streams],
            "same": [sys.__stdin__ is sys.stdin, sys.__stdout__ is sys.stdout, sys.__stderr__ is sys.stderr],
            "umask": os.umask(0), "cwd": os.getcwd(), "leads": [os.getsid(0) == os.getpid()] * 2,
            "limits": [resource.getrlimit(n) for n in range(10)], "gc": gc.isenabled(),
            "comm": open("/proc/self/comm").read(), "generators": sorted({"random", "ssl"} & set(sys.modules)),
            "frozen": gc.get_freeze_count(), "main": __name__, "module": os.path.abspath(__file__),
        }
        stdout.write(json.dumps(text).encode())
        stdout.flush()
    elif what == "cat":
        while data := stdin.read1(65536):
            stdout.write(data)
        print("from print, unflushed", end="")
        sys.stdout.flush()
        stdout.flush()
    elif what == "raise":
        print("said before", end="")
        raise ValueError("on purpose")
    elif what == "sleep":
        stdout.write(b"asleep\\n")
        stdout.flush()
        time.sleep(300)
    elif what == "polite":
        def handler(*_):
            raise SystemExit
        signal.signal(signal.SIGTERM, handler)
        try:
            stdout.write(b"asleep\\n")
            stdout.flush()
            time.sleep(300)
        except SystemExit:
            return 143
    elif what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    elif what == "large":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        try:
            with open(argv[1], "wb") as file:
                file.write(bytes(100))
        except OSError as error:
            return error.errno
    elif what == "dumpable":
        import ctypes
        return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
    return int(argv[1]) if what == "x" and argv[1:] else 0
"""


class Twin:
    """A box with one program under two names: `forked` is known as the image's own, `executed` is not."""

    def __init__(self, box: Box, directory: Path) -> None:
        self.box = box
        self.forked, self.executed = (str(directory / name / "lab-agent") for name in ("own", "other"))

    async def both(self, *argv: str, **options: Any) -> tuple[Completed, Completed]:
        """What each of them did."""
        forked = await self.box.run([self.forked, *argv], **options)
        return forked, await self.box.run([self.executed, *argv], **options)


def _install(directory: Path, code: Path) -> str:
    """Both launchers, and the patch that makes the guest agent know the first."""
    text = _LAUNCHER.format(python=os.path.realpath(sys.executable), code=code)
    for name, end in (("own", ""), ("other", "# another\n")):
        path = directory / name / "lab-agent"
        path.parent.mkdir()
        path.write_text(text + end)
        path.chmod(0o755)
    (directory / "launcher.py").write_text(text)
    return f"from voidbox_guest import warm; warm.LAUNCHERS = ({str(directory / 'launcher.py')!r},)\n"


_PRELOAD = pytest.mark.parametrize("preload", [False, True], ids=["cold", "preloaded"])


@pytest.fixture(params=[False, True], ids=["cold", "preloaded"])
async def twin(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Twin]:
    """A box whose lab-agent does as the test says; with its modules loaded before, and not."""
    package = tmp_path / "code" / "lab_agent"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(_PROBE)
    patch = _install(tmp_path, tmp_path / "code") + f"sys.path.insert(0, {str(tmp_path / 'code')!r})\n"
    patch += "warm.preload()\n" if request.param else ""
    # What a guest agent has open that no command may see.
    patch += "secrets = [os.open('/etc/passwd', os.O_RDONLY) for _ in range(50)]\nprint('PID 1 says', end='')\n"
    async with guest_box(tmp_path, patch) as box:
        yield Twin(box, tmp_path)


async def test_the_child_is_as_a_fresh_interpreter(twin: Twin) -> None:
    """Arguments, environment, descriptors, signals, streams, limits, directory, name: all alike."""
    env = {"MINE": "1", "NAMED": "ü"}
    options: dict[str, Any] = {"cwd": "/usr", "env": env, "limits": Rlimits(open_files=300)}
    forked, executed = await twin.both("facts", "é", "", **options)
    assert forked.stderr == executed.stderr == b""
    one, other = (json.loads(done.stdout) for done in (forked, executed))
    assert one["argv"][0].pop(0) == twin.forked
    assert other["argv"][0].pop(0) == twin.executed
    # What was PID 1's is never collected: it owns descriptor numbers that are the child's by now.
    assert one.pop("frozen") > 1000
    assert other.pop("frozen") == 0
    assert one == other
    assert one["descriptors"] == [0, 1, 2]
    assert set(one["environ"][1]) == {"PATH", "HOME", "USER", "LOGNAME", "LANG", "MINE", "NAMED"}
    assert one["environ"][0] == one["environ"][1]
    assert one["comm"] == "lab-agent\n"
    assert one["generators"] == []


async def test_it_is_a_fork_and_the_other_is_not(twin: Twin) -> None:
    """Only the fork shares the guest agent's argument list; and no process but root's may read its memory."""
    for program, forked in ((twin.forked, True), (twin.executed, False)):
        async with await twin.box.start_exec([program, "sleep"], cwd="/") as process:
            assert await process.stdout.receive() == b"asleep\n"
            assert (b"voidbox_guest" in Path(f"/proc/{process.pid}/cmdline").read_bytes()) is forked
        assert (await twin.box.run([program, "dumpable"], cwd="/")).exit_code == int(not forked)


async def test_ends(twin: Twin) -> None:
    """Exit codes, tracebacks, an interrupt, a file that may not grow."""
    for argv in (["x"], ["x", "7"], ["x", "255"], ["large", "/dev/shm/voidbox-test-large"]):
        forked, executed = await twin.both(*argv, cwd="/")
        assert (forked.exit_code, forked.signal) == (executed.exit_code, executed.signal)
        assert forked.exit_code == (0 if argv == ["x"] else 27 if argv[0] == "large" else int(argv[1]))
    Path("/dev/shm/voidbox-test-large").unlink()
    forked, executed = await twin.both("raise", cwd="/")
    assert forked.exit_code == executed.exit_code == 1
    assert forked.stdout == executed.stdout == b"said before"
    assert forked.stderr.startswith(b"Traceback (most recent call last):")
    assert forked.stderr.splitlines()[-1] == executed.stderr.splitlines()[-1] == b"ValueError: on purpose"
    forked, executed = await twin.both("interrupt", cwd="/")
    assert forked.signal == executed.signal == signal.SIGINT


async def test_standard_input_and_output(twin: Twin) -> None:
    """More than pipes hold, and its end; and none at all."""
    data = os.urandom(900_000)
    for done in await twin.both("cat", cwd="/", stdin=data):
        assert done.stdout == data + b"from print, unflushed"
    for done in await twin.both("cat", cwd="/"):
        assert done.stdout == b"from print, unflushed"


async def test_terminate_kill_and_time_out(twin: Twin) -> None:
    """By default SIGTERM ends it at once; a handler has its say; SIGKILL comes for all."""
    for program in (twin.forked, twin.executed):
        done = await twin.box.run([program, "sleep"], cwd="/", timeout_s=3)
        assert (done.timed_out, done.signal) == (True, signal.SIGTERM)
        async with await twin.box.start_exec([program, "polite"], cwd="/") as process:
            assert await process.stdout.receive() == b"asleep\n"
            process.terminate()
            assert (await process.wait()).code == 143
        async with await twin.box.start_exec([program, "sleep"], cwd="/") as process:
            assert await process.stdout.receive() == b"asleep\n"
            await process.kill()
        await gone(process.pid)


async def test_many_at_once_and_the_guest_agent_lives(twin: Twin) -> None:
    """Each with its own words; afterwards the guest agent has no descriptor more."""
    # The guest agent gets a moment to see that the command which counts has started.
    count = ["sh", "-c", "sleep 0.2; ls /proc/$PPID/fd | wc -l"]
    before = (await twin.box.run(count, cwd="/")).stdout
    answers: dict[int, bytes] = {}

    async def one(number: int) -> None:
        answers[number] = (await twin.box.run([twin.forked, "cat"], cwd="/", stdin=b"%d " % number)).stdout

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(one, number)
    assert answers == {n: b"%d from print, unflushed" % n for n in range(20)}
    # A command's last descriptors are closed after its answer was sent.
    with anyio.fail_after(10):
        while (await twin.box.run(count, cwd="/")).stdout != before:
            await anyio.sleep(0.1)


async def test_what_execve_refuses_is_refused(twin: Twin, tmp_path: Path) -> None:
    """Found along PATH as execvp does; not executable, not there, not a directory: the same errors as ever."""
    env = {"PATH": f"/nonexistent:{tmp_path}/own:/usr/bin:/bin"}
    done = await twin.box.run(["lab-agent", "x", "5"], cwd="/", env=env)
    assert done.exit_code == 5
    assert (await twin.box.run(["./lab-agent", "x", "6"], cwd=str(tmp_path / "own"))).exit_code == 6
    for mode, cwd, cause in ((0o755, "/no/such", "not-found"), (0o644, "/", "denied")):
        (tmp_path / "own" / "lab-agent").chmod(mode)
        with pytest.raises(UserError) as caught:
            await twin.box.run([twin.forked, "x"], cwd=cwd)
        assert caught.value.cause == cause
    (tmp_path / "own" / "lab-agent").unlink()
    with pytest.raises(UserError) as caught:
        await twin.box.run([twin.forked, "x"], cwd="/")
    assert caught.value.cause == "not-found"


@_PRELOAD
async def test_the_agent_itself(tmp_path: Path, preload: bool) -> None:
    """A real run over HTTP, forked and executed: the same events, and tools that run in the same surroundings."""
    patch = _install(tmp_path, data_dir("guest")) + ("warm.preload()\n" if preload else "")
    asked = "```\nenv | grep -v ^_= | sort; pwd; umask; ls /proc/self/fd; grep ^Sig[BIC] /proc/self/status\n```"
    async with place(tmp_path) as p, guest_box(tmp_path, patch) as box:
        env = {"ANTHROPIC_BASE_URL": p.url, "ANTHROPIC_API_KEY": p.env("scripted:shell")["ANTHROPIC_API_KEY"]}
        argv = ("-p", "-", "--model", "scripted:shell")
        await anyio.lowlevel.checkpoint()  # the connection runs
        forked, executed = await Twin(box, tmp_path).both(*argv, cwd="/usr", env=env, stdin=asked.encode())
    assert (forked.exit_code, forked.stderr) == (executed.exit_code, executed.stderr) == (0, b"")
    one, other = (_comparable(done.stdout) for done in (forked, executed))
    assert one == other
    result = one[-1]["result"]
    assert "USER=agent" in result
    assert "ANTHROPIC_API_KEY" not in result
    assert "LEAK" not in result


@_PRELOAD
async def test_nobody_there_to_ask(tmp_path: Path, preload: bool) -> None:
    """A wrong command line and a model that cannot be had: words on standard error, codes 2 and 1."""
    patch = _install(tmp_path, data_dir("guest")) + ("warm.preload()\n" if preload else "")
    async with guest_box(tmp_path, patch) as box:
        twin = Twin(box, tmp_path)
        for argv, code in ((["--wrong"], 2), (["-p", "x"], 1)):
            forked, executed = await twin.both(*argv, cwd="/", env={"ANTHROPIC_BASE_URL": "ftp://x"})
            assert forked.exit_code == executed.exit_code == code
            assert forked.stderr == executed.stderr
            assert forked.stderr.startswith(b"lab-agent: ")


async def test_a_denied_program_is_left_to_the_kernel(tmp_path: Path) -> None:
    """Where the policy may refuse, execve decides: here it runs, because this host enforces nothing."""
    patch = _install(tmp_path, data_dir("guest"))
    patch += "from voidbox_guest.programs import Programs; Programs.refusal = lambda self, path: 'denied'\n"
    patch += "warm.become = None\n"
    async with guest_box(tmp_path, patch) as box:
        done = await Twin(box, tmp_path).box.run([str(tmp_path / "own" / "lab-agent"), "--version"], cwd="/")
    assert done.stdout.startswith(b"lab-agent ")


def _comparable(stdout: bytes) -> list[dict[str, Any]]:
    """Events without what differs from run to run."""
    events = [json.loads(line) for line in re.sub(rb"(msg|toolu)_\w+", b"", stdout).splitlines()]
    for event in events:
        for name in ("session_id", "uuid", "duration_ms", "duration_api_ms"):
            event.pop(name, None)
    return events

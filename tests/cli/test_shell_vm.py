"""``voidbox shell`` in a real terminal, with a real daemon and real boxes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from voidbox_lab import images
from voidbox_lab.settings import Settings

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

BOUND_S = 120
VOIDBOX = [sys.executable, "-m", "voidbox_lab.cli"]
PROMPT = ":/workspace$ "


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A home of its own over the shared image cache; its daemon is ended."""
    settings = Settings.from_env()
    images.build(settings)
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "VOIDBOX_HOME": str(home), "VOIDBOX_CACHE": str(settings.cache), "TERM": "xterm"}
    yield env
    subprocess.run([*VOIDBOX, "daemon", "stop"], env=env, check=True, timeout=60)


def shell(env: dict[str, str], *options: str) -> pexpect.spawn[str]:
    """``voidbox shell`` in a terminal of 37 rows and 113 columns, up to its first line."""
    argv = ["-m", "voidbox_lab.cli", "shell", "--memory", "256", *options]
    made = pexpect.spawn(
        sys.executable, argv, env=env, timeout=BOUND_S, encoding="utf-8", dimensions=(37, 113), echo=True
    )
    made.expect(r"box vb-[0-9a-f]{10}: (tcg|kvm), \w+ vsock, 256 MB, up after")
    return made


def test_a_session(env: dict[str, str]) -> None:
    """A pts of this window's size, which follows it; Ctrl-C is the box's; the exit code is the shell's own."""
    with shell(env) as session:
        session.expect_exact(PROMPT)
        assert not termios.tcgetattr(session.child_fd)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        session.sendline("tty; stty size; echo $TERM")
        session.expect(r"/dev/pts/\d+\r\n37 113\r\nxterm\r\n")
        session.expect_exact(PROMPT)
        session.setwinsize(50, 200)
        time.sleep(1)
        session.sendline("stty size")
        session.expect_exact("50 200\r\n")
        session.expect_exact(PROMPT)
        session.sendline("sleep 1000")
        time.sleep(1)
        session.send("\x03")
        session.expect_exact("^C")
        session.expect_exact(PROMPT)
        session.sendline("echo code-$?")
        session.expect_exact("code-130\r\n")
        session.sendline("exit 7")
        session.expect(pexpect.EOF)
        session.wait()
    assert session.exitstatus == 7


def test_the_terminal_is_as_before_whatever_ends_it(env: dict[str, str]) -> None:
    """The end of the shell, SIGTERM, a daemon that dies: echo and line editing are there again."""
    # A shell around it, so that the terminal outlives it.
    host = pexpect.spawn("sh", env={**env, "PS1": "HOST> "}, timeout=BOUND_S, encoding="utf-8")
    try:
        host.expect_exact("HOST> ")
        command = f"{' '.join(VOIDBOX)} shell --memory 256"
        host.sendline("stty -a | md5sum")
        host.expect(r"([0-9a-f]{32})")
        normal = host.match.group(1)

        def same() -> None:
            host.expect_exact("HOST> ")
            host.sendline("stty -a | md5sum")
            host.expect(r"([0-9a-f]{32})")
            assert host.match.group(1) == normal

        def begin() -> None:
            host.expect_exact("HOST> ")
            host.sendline(command)
            host.expect_exact("up after")
            host.expect_exact(PROMPT)

        def code(number: int) -> None:
            host.expect_exact("HOST> ")
            host.sendline("echo code-$?")
            host.expect_exact(f"code-{number}\r\n")

        begin()
        # Its last words ask the terminal for an answer, and leave mouse reports on.
        host.sendline("printf '\\033[?1000h\\033[6n'; exit 3")
        host.expect_exact("\x1b[6n")
        host.send("\x1b[1;1R")
        host.expect_exact("\x1b[?1000;")
        code(3)
        same()
        begin()
        pid = child_of(host.pid)
        os.kill(pid, signal.SIGTERM)
        code(128 + signal.SIGTERM)
        same()
        begin()
        subprocess.run([*VOIDBOX, "daemon", "stop"], env=env, check=True, timeout=60)
        host.expect_exact("cancelled")
        code(130)
        same()
    finally:
        host.close(force=True)


def child_of(pid: int) -> int:
    """The one child of process `pid`."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_a_closed_window_takes_the_box_along(env: dict[str, str]) -> None:
    """SIGHUP, as a terminal emulator's end sends it; and kill -9, after which nobody says good-bye."""
    for number in (signal.SIGHUP, signal.SIGKILL):
        with shell(env) as session:
            session.expect_exact(PROMPT)
            os.kill(session.pid, number)
        end = time.monotonic() + 60
        while boxes(env) and time.monotonic() < end:
            time.sleep(0.1)
        assert boxes(env) == 0


def boxes(env: dict[str, str]) -> int:
    said = subprocess.run(
        [*VOIDBOX, "daemon", "status", "--json"], env=env, capture_output=True, check=True, timeout=60
    )
    count = json.loads(said.stdout)["boxes"]
    assert isinstance(count, int)
    return count


def voidbox(env: dict[str, str], *argv: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """The command without a terminal, to its end."""
    where = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run([*VOIDBOX, *argv], env=env, capture_output=True, timeout=BOUND_S, check=False, **where)  # type: ignore[call-overload]


def test_without_a_terminal(env: dict[str, str], tmp_path: Path) -> None:
    """A pipe, a file and nothing at all are typed into the box's terminal, and their end is its end of file."""
    piped = voidbox(env, "shell", "--memory", "256", stdin=b"stty size; cat\nline without an end")
    assert piped.returncode == 0, piped.stderr
    assert b"24 80\r\n" in piped.stdout
    assert piped.stdout.count(b"line without an end\r\n") == 2, "the echo, and what cat says"
    script = tmp_path / "script"
    script.write_bytes(b"echo from-a-$((1 + 1))-file\nexit 9\n")
    with script.open("rb") as file:
        done = subprocess.run(
            [*VOIDBOX, "shell", "--memory", "256"],
            env=env,
            stdin=file,
            capture_output=True,
            timeout=BOUND_S,
            check=False,
        )
    assert done.returncode == 9, done.stderr
    assert b"from-a-2-file\r\n" in done.stdout
    nothing = voidbox(env, "shell", "--memory", "256", "--", "sh", "-c", "tty; cat; exit 5")
    assert (nothing.returncode, nothing.stdout.startswith(b"/dev/pts/")) == (5, True), nothing.stderr


def test_codes_of_our_own(env: dict[str, str]) -> None:
    """As `voidbox exec`: 126, 127; a signal is 128 and its number; trouble of ours is 125 and one sentence."""
    alone = ("shell", "--memory", "256")
    denied = voidbox(env, *alone, "--allow-command", "sh", "--", "cat")
    assert (denied.returncode, b"allowlist" in denied.stderr) == (126, True), denied.stderr
    assert voidbox(env, *alone, "--", "no-such-program").returncode == 127
    assert voidbox(env, *alone, "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert voidbox(env, "shell", "--image", "no-such").returncode == 125

"""``voidbox shell``: how it is called, and what it does to the terminal, without a box."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from voidbox_lab.cli import screen as screens
from voidbox_lab.cli.app import run
from voidbox_lab.cli.screen import Screen
from voidbox_lab.errors import Cancelled, ProviderError, UserError, VoidboxError
from voidbox_lab.spec import BoxFacts
from voidbox_lab.spec.api import ExecExit, ExecStarted, ExecWaiting, ShellRequest

FACTS = BoxFacts(
    isolation="tcg", vsock="user", domain="vb-0000000000", image="sha256:x", memory_mb=512, vcpus=1, boot_s=2
)
EXIT_7 = ExecExit(code=7, duration_s=1)


class FakeShell:
    """Plays events; keeps what it was asked."""

    def __init__(self, *events: Any) -> None:
        self.played = events
        self.request: ShellRequest | None = None
        self.sizes: list[tuple[int, int]] = []

    @asynccontextmanager
    async def open(self, request: ShellRequest) -> AsyncIterator[FakeShell]:
        self.request = request
        yield self

    async def events(self) -> AsyncIterator[Any]:
        for event in self.played:
            if isinstance(event, Exception):
                raise event
            yield event

    async def type(self, data: bytes) -> None:
        return

    async def resize(self, rows: int, cols: int) -> None:
        self.sizes.append((rows, cols))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeShell]:
    """In place of the client; ends with code 7 unless told otherwise. Standard input is nothing."""
    made = FakeShell(ExecStarted(facts=FACTS), EXIT_7)
    monkeypatch.setattr("voidbox_lab.cli.shell.open_shell", made.open)
    monkeypatch.setenv("TERM", "xterm")
    null = os.open("/dev/null", os.O_RDONLY)
    monkeypatch.setattr(screens, "STDIN", null)
    yield made
    os.close(null)


@pytest.mark.parametrize(("argv", "expected"), [
    ([], {}),
    (["--", "ls", "-l", "--", "x"], {"argv": ("ls", "-l", "--", "x")}),
    (["--memory", "300", "--vcpus", "2", "--image", "mine", "--", "id"],
     {"memory_mb": 300, "vcpus": 2, "image": "mine", "argv": ("id",)}),
    (["run-0123456789ab/one"], {"run": "run-0123456789ab", "stage": "one"}),
    (["run-0123456789ab/map/3", "--", "bash", "-l"],
     {"run": "run-0123456789ab", "stage": "map/3", "argv": ("bash", "-l")}),
    (["--", "a/b"], {"argv": ("a/b",)}),
    (["--volume", "cache:/data", "--volume", "models:/models:ro"],
     {"volumes": (
         {"volume": "cache", "path": "/data"}, {"volume": "models", "path": "/models", "read_only": True},
     )}),
])  # fmt: skip
def test_what_is_asked_for(fake: FakeShell, argv: list[str], expected: dict[str, Any]) -> None:
    """A command comes after ``--``; what comes before it is a stage."""
    assert run(["shell", *argv]) == 7
    assert fake.request is not None
    assert fake.request.model_dump(exclude_defaults=True, exclude={"rows", "cols"}) == {
        "term": "xterm",
        **expected,
    }


@pytest.mark.parametrize(("argv", "said"), [
    (["ls"], "'ls' is not RUN/STAGE"),
    (["run-1/"], "is not RUN/STAGE"),
    (["run-1/one", "--memory", "300"], "leave out the options"),
    (["run-1/one", "--allow-command", "sh"], "leave out the options"),
    (["run-1/one", "--volume", "a:/data"], "leave out the options"),
    (["run-1/one", "--allow", "pypi.org:443"], "leave out the options"),
    (["--allow", "pypi.org:port"], "voidbox shell --allow: 'pypi.org:port' is not HOST:PORT"),
    (["--network", "some"], "voidbox shell --network:"),
    (["--network", "allowlist"], "egress names no host"),
    (["--volume", "a:data"], "voidbox shell --volume:"),
    (["--json"], '"kind":"user"'),
    (["--memory", "4"], "voidbox shell --memory:"),
    (["--memroy", "400"], "--memroy"),
    (["a/b", "c"], "c"),
])  # fmt: skip
def test_what_cannot_be_asked_for(
    fake: FakeShell, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    """One sentence, before anything is started."""
    assert run(["shell", *argv]) == 2
    assert said in capsys.readouterr().err
    assert fake.request is None


def test_one_line_says_which_box(fake: FakeShell, capsys: pytest.CaptureFixture[str]) -> None:
    """And how isolated; a wait is said too."""
    fake.played = (ExecWaiting(reason="memory", ahead=1, message="Waiting for room."), *fake.played)
    assert run(["shell"]) == 7
    waiting, box = capsys.readouterr().err.splitlines()
    assert waiting == "Waiting for room."
    assert box == "box vb-0000000000: tcg, user vsock, 512 MB, up after 2.0 s (cold)"
    fake.played = (ExecStarted(facts=FACTS), EXIT_7)
    assert run(["shell", "run-0123456789ab/one"]) == 7
    assert capsys.readouterr().err == "box vb-0000000000 of run-0123456789ab/one: tcg, user vsock, 512 MB\n"


@pytest.mark.parametrize(("end", "code"), [
    (ExecExit(code=0, duration_s=1), 0),
    (ExecExit(code=None, signal=9, duration_s=1), 137),
    (UserError("No.", cause="not-found"), 127),
    (UserError("No.", cause="denied"), 126),
    (UserError("No."), 125),
    (ProviderError("No."), 125),
    (Cancelled("No."), 130),
])  # fmt: skip
def test_codes(fake: FakeShell, end: ExecExit | VoidboxError, code: int) -> None:
    """As `voidbox exec` has them."""
    fake.played = (ExecStarted(facts=FACTS), end)
    assert run(["shell"]) == code


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input and output; this is its master."""
    master, slave = pty.openpty()
    for name in ("STDIN", "STDOUT", "STDERR"):
        monkeypatch.setattr(screens, name, slave)
    monkeypatch.setenv("TERM", "xterm")
    yield master
    os.close(master)
    os.close(slave)


def test_raw_mode_ends_with_the_screen(terminal: int) -> None:
    """Also when it ends by an exception; what the terminal said in the meantime is dropped."""
    before = termios.tcgetattr(screens.STDIN)

    def fail_on_screen() -> None:
        with Screen() as screen:
            screen.raw()
            screen.raw()
            assert termios.tcgetattr(screens.STDIN) != before
            os.write(terminal, b"\x1b[1;1R")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_on_screen()
    assert termios.tcgetattr(screens.STDIN) == before
    os.set_blocking(screens.STDIN, False)
    with pytest.raises(BlockingIOError):
        os.read(screens.STDIN, 100)
    assert os.read(terminal, 100) == screens.TIDY


def test_what_was_typed_before_stays(terminal: int) -> None:
    """While the box boots, for instance."""
    os.write(terminal, b"early\n")
    with Screen() as screen:
        screen.raw()
        assert os.read(screens.STDIN, 100) == b"early\n"


def test_a_screen_that_was_never_raw_is_left_alone(terminal: int) -> None:
    """Nothing is written, nothing dropped."""
    with Screen():
        os.write(terminal, b"typed\n")
    os.set_blocking(screens.STDIN, False)
    assert os.read(screens.STDIN, 100) == b"typed\n"
    assert os.read(terminal, 100) == b"typed\r\n", "its echo alone"


def test_sizes(terminal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's own within what a box takes; 24 by 80 for one that does not know, and for none."""
    assert Screen().size() == (24, 80)
    termios.tcsetwinsize(terminal, (50, 200))
    assert Screen().size() == (50, 200)
    termios.tcsetwinsize(terminal, (60000, 60000))
    assert Screen().size() == (4096, 4096)
    null = os.open("/dev/null", os.O_RDONLY)
    for name in ("STDIN", "STDOUT", "STDERR"):
        monkeypatch.setattr(screens, name, null)
    assert Screen().size() == (24, 80)
    os.close(null)


@pytest.mark.parametrize(("term", "kind"), [
    ("xterm-256color", "xterm-256color"), ("", "dumb"), ("x\x1b", "dumb"), ("-x", "dumb"), ("x" * 65, "dumb"),
])  # fmt: skip
def test_kinds(monkeypatch: pytest.MonkeyPatch, term: str, kind: str) -> None:
    """What the request takes, and nothing that it would refuse."""
    monkeypatch.setenv("TERM", term)
    assert Screen().kind() == kind
    assert ShellRequest(term=kind).term == kind

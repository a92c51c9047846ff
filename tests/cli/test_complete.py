"""The Tab key: what it offers, that it starts nothing, and that it is never waited for."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from contextlib import suppress

import pytest

from tests.cli.conftest import VOIDBOX, Place, fill, spec
from tests.daemon.test_life import daemons
from voidbox_lab.cli import complete
from voidbox_lab.client import ensure_daemon
from voidbox_lab.spec.events import RunChanged, StageChanged

RUN = "run-ab0000000000"


def offered(place: Place, line: str) -> list[str]:
    """What bash is offered after `line`, as its completion function asks for it."""
    words = line.split(" ")
    env = {
        **place.env,
        "_VOIDBOX_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(VOIDBOX, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    return done.stdout.split()


def test_without_a_daemon(home: Place) -> None:
    """What files and the program know; for the rest nothing, and no daemon is started."""
    assert offered(home, "voidbox show ") == []
    assert offered(home, "voidbox logs run-x --stage ") == []
    assert offered(home, "voidbox runs --state pa") == ["paused"]
    assert offered(home, "voidbox template build --agent cl") == ["claude-code"]
    assert {"runs", "run"} <= set(offered(home, "voidbox ru"))
    (home.settings.data / "volumes" / "cache").mkdir(parents=True)
    (home.settings.data / "volumes" / "cache" / "volume.json").touch()
    (home.settings.data / "volumes" / "half-made").mkdir()
    assert offered(home, "voidbox volume rm ") == ["cache"]
    assert offered(home, "voidbox exec --volume ") == ["cache:"]
    assert daemons(home.settings) == []


def test_a_daemon_that_hangs_or_trickles(home: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is left alone in time."""
    monkeypatch.setenv("VOIDBOX_HOME", home.env["VOIDBOX_HOME"])
    path = home.settings.socket
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def trickle() -> None:
            with suppress(OSError):
                for n in range(3):
                    near, _ = listener.accept()
                    if n:
                        near.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                    for _ in range(100):
                        near.sendall(b"[" if n else b"")
                        time.sleep(0.05)

        threading.Thread(target=trickle, daemon=True).start()
        for _ in range(2):
            began = time.monotonic()
            assert complete.run_ids("") == []
            assert time.monotonic() - began < complete.BOUND_S + 0.5
        listener.shutdown(socket.SHUT_RDWR)
    path.unlink()


def test_with_a_daemon(home: Place) -> None:
    """Runs, and the stages of the one that was typed, whatever way."""
    fill(home.settings, RUN, spec("first", "second"), [
        (None, RunChanged(state="running")),
        *((name, StageChanged(state="succeeded", output="x")) for name in ("first", "second")),
        (None, RunChanged(state="succeeded")),
    ])  # fmt: skip
    ensure_daemon(home.settings)
    assert offered(home, "voidbox show ") == ["@last", RUN]
    assert offered(home, "voidbox cancel run-a") == [RUN]
    assert offered(home, "voidbox cancel run-b") == []
    for word in ("ab", "@last", RUN):
        assert offered(home, f"voidbox logs {word} --stage ") == ["first", "second"]
    assert offered(home, f"voidbox show {RUN} --stage s") == ["second"]
    with home.client() as client:
        run = client.submit(spec("slow-x")).id
        end = time.monotonic() + 20
        while client.run(run).stages["slow-x"].state != "running" and time.monotonic() < end:
            time.sleep(0.05)
        assert offered(home, "voidbox shell ") == [f"{run}/slow-x"]
        client.cancel(run)


def test_bash_can_be_set_up(home: Place) -> None:
    """From a bash, whose kind is found out; the script calls us back."""
    env = {**home.env, "HOME": str(home.settings.data)}

    def in_bash(option: str) -> str:
        # A second command, or bash would become the first one.
        line = f"{' '.join(VOIDBOX)} {option}; exit $?"
        done = subprocess.run(
            ["bash", "-c", line], env=env, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout

    shown = in_bash("--show-completion")
    assert "_VOIDBOX_COMPLETE=complete_bash" in shown
    assert "bash completion installed" in in_bash("--install-completion")
    assert "_VOIDBOX_COMPLETE" in (home.settings.data / ".bash_completions" / "voidbox.sh").read_text()

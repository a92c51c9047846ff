"""The daemon as a process: started once, found again, replaced, killed, idle, and what it leaves: nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.test_api import spec
from voidbox_lab.cli.app import run
from voidbox_lab.client import Client, ensure_daemon, launch
from voidbox_lab.daemon.serve import IDLE_S, idle_from_env
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.settings import Address, Settings, read_token
from voidbox_lab.spec.events import AgentText, RunChanged


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[Settings]:
    """`ensure_daemon` starts the real process over the fake backend; whatever runs at the end is killed."""
    monkeypatch.setattr(launch, "MODULE", "tests.daemon.serving")
    monkeypatch.setenv("VOIDBOX_IDLE_S", "120")
    yield settings
    for pid in daemons(settings):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not daemons(settings), 5)


def daemons(settings: Settings) -> list[int]:
    """Pids of the daemon processes of this home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "tests.daemon.serving" in argv and f"--runtime={settings.runtime}" in argv:
                found.append(int(entry.name))
    return found


def until(true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def test_started_once_and_found_again(fake: Settings) -> None:
    """Eight clients at once, one daemon."""
    with ThreadPoolExecutor(8) as threads:
        pids = {h.pid for h in threads.map(lambda _: ensure_daemon(fake), range(8))}
    assert len(pids) == 1
    assert daemons(fake) == [*pids]
    assert ensure_daemon(fake).pid in pids


def test_a_second_daemon_leaves_the_first_alone(fake: Settings) -> None:
    first = ensure_daemon(fake)
    arguments = launch._arguments(fake)
    second = subprocess.run([sys.executable, "-m", launch.MODULE, *arguments], timeout=30, check=False)
    assert second.returncode == 0
    assert ensure_daemon(fake).pid == first.pid


def test_its_own_session_and_no_keys_in_its_environment(fake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-environment-secret")
    with Client(fake) as client:
        health = client.health()
        assert health.keys == ("ANTHROPIC_API_KEY",)
    assert os.getsid(health.pid) == health.pid
    assert b"sk-environment-secret" not in Path(f"/proc/{health.pid}/environ").read_bytes()
    assert b"sk-environment-secret" not in Path(f"/proc/{health.pid}/cmdline").read_bytes()


def test_killed_in_the_middle_of_a_run(fake: Settings) -> None:
    """kill -9: the reader goes on with the next daemon, which puts the run to rest and keeps what was streamed."""
    with Client(fake) as client:
        first = client.health().pid
        record = client.submit(spec("slow"))
        seen = []
        for event in client.events(record.id):
            seen.append(event)
            if isinstance(event.body, AgentText):
                os.kill(first, signal.SIGKILL)
        assert [e.seq for e in seen] == list(range(1, len(seen) + 1))
        last = seen[-1].body
        assert isinstance(last, RunChanged)
        assert last.trouble is not None
        assert (last.state, last.trouble.kind, last.trouble.cause) == ("interrupted", "provider", "daemon-died")
        final = client.run(record.id)
        assert final.stages["slow"].state == "queued", "it can be resumed, and then starts anew"
        assert client.health().pid != first


def test_a_stale_socket_is_no_obstacle(fake: Settings) -> None:
    first = ensure_daemon(fake).pid
    os.kill(first, signal.SIGKILL)
    until(lambda: not daemons(fake), 5)
    assert fake.socket.exists()
    assert ensure_daemon(fake).pid != first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_runs_and_ends_in_order(fake: Settings, number: int) -> None:
    with Client(fake) as client:
        pid = client.health().pid
        record = client.submit(spec("slow"))
        states = []
        for event in client.events(record.id):
            if isinstance(event.body, AgentText):
                os.kill(pid, number)
            if isinstance(event.body, RunChanged):
                states.append(event.body.state)
        assert states == ["running", "cancelled"]
    until(lambda: not daemons(fake), 15)
    assert not fake.socket.exists()
    assert not (fake.runtime / "gateway.sock").exists()


def test_idle_means_leaving(fake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_IDLE_S", "0.5")
    ensure_daemon(fake)
    until(lambda: not daemons(fake), 15)
    assert not fake.socket.exists()


def test_a_run_keeps_it_from_being_idle(fake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOIDBOX_IDLE_S", "0.3")
    with Client(fake) as client:
        pid = client.health().pid
        record = client.submit(spec("slow"))
    time.sleep(1.5)
    assert daemons(fake) == [pid]
    with Client(fake) as client:
        client.cancel(record.id)
    until(lambda: not daemons(fake), 15)


def test_an_idle_daemon_of_another_release_is_replaced(fake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ensure_daemon(fake)
    # This client is of another release than the daemon it finds; what it starts in turn says so as well.
    monkeypatch.setattr(launch, "_ours", lambda health: health.pid != old.pid)
    new = ensure_daemon(fake)
    assert new.pid != old.pid
    until(lambda: daemons(fake) == [new.pid], 15)


def test_a_busy_daemon_of_another_release_is_left_alone(fake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(fake) as client:
        record = client.submit(spec("slow"))
        until(lambda: client.health().boxes == 1, 5)
        monkeypatch.setattr(launch, "_ours", lambda _: False)
        with pytest.raises(UserError, match=r"busy \(1 runs, 1 boxes\)"):
            ensure_daemon(fake)
        assert client.run(record.id).state == "running"


def test_tcp_and_its_token(fake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No TCP unless asked; with it, the token is in its file and nowhere else, and other clients can use it."""
    assert ensure_daemon(fake).tcp is None
    assert not fake.token_file.exists()
    with Client(fake, start=False) as client:
        client.shutdown()
    until(lambda: not daemons(fake), 15)
    monkeypatch.setenv("VOIDBOX_TOKEN", "of-another-daemon-that-this-user-uses")
    health = ensure_daemon(replace(fake, tcp=Address("127.0.0.1", 0)))
    secret = read_token(fake.token_file)
    process = Path(f"/proc/{health.pid}")
    for file in (process / "cmdline", process / "environ", fake.data / "logs" / "daemon.log"):
        assert secret not in file.read_text()
    assert "VOIDBOX_TOKEN" not in (process / "environ").read_text()
    assert health.tcp is not None
    remote = replace(fake, daemon=health.tcp, token_from=fake.token_file, runtime=Path("/nonexistent"))
    with Client(remote) as client:
        record = client.submit(spec("one"))
        assert [e.seq for e in client.events(record.id)][-1] > 5
        assert client.health().pid == health.pid
        client.shutdown()
    until(lambda: not daemons(fake), 15)
    with pytest.raises(ProviderError, match="VOIDBOX_DAEMON names"):
        ensure_daemon(remote)
    assert not daemons(fake), "what VOIDBOX_DAEMON names is never started"


def test_the_command_line_and_tcp(
    fake: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``daemon start --tcp 0``, ``token``, ``status``; another address than the running one's is said."""
    monkeypatch.setenv("VOIDBOX_HOME", str(fake.data.parent))
    assert run(["daemon", "start", "--tcp", "0"]) == 0
    assert " and http://127.0.0.1:" in capsys.readouterr().out
    assert run(["daemon", "token"]) == 0
    assert capsys.readouterr().out == fake.token_file.read_text()
    assert run(["daemon", "status", "--json"]) == 0
    url = json.loads(capsys.readouterr().out)["tcp"]
    assert run(["daemon", "start", "--tcp", "1"]) == 2
    assert "does not listen on 127.0.0.1:1" in capsys.readouterr().err
    assert run(["daemon", "start", "--tcp", "x"]) == 2
    assert "--tcp='x' is not HOST:PORT" in capsys.readouterr().err
    monkeypatch.setenv("VOIDBOX_DAEMON", url)
    monkeypatch.setenv("VOIDBOX_TOKEN_FILE", str(fake.token_file))
    assert run(["daemon", "status"]) == 0
    assert f"on {url}" in capsys.readouterr().out
    assert run(["runs"]) == 0
    assert run(["daemon", "start", "--tcp", "0"]) == 2
    assert run(["daemon", "stop"]) == 0
    until(lambda: not daemons(fake), 15)


def test_a_token_that_others_may_know_is_refused(fake: Settings) -> None:
    fake.token_file.write_text("x" * 43)
    fake.token_file.chmod(0o644)
    with pytest.raises(ProviderError, match="mode 0600"):
        ensure_daemon(replace(fake, tcp=Address("127.0.0.1", 0)))
    assert not fake.socket.exists()


def test_a_daemon_on_tcp_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can start it from afar; a time that was asked for is kept."""
    assert idle_from_env({}, tcp=True) == float("inf")
    assert idle_from_env({}) == IDLE_S
    assert idle_from_env({"VOIDBOX_IDLE_S": "5"}, tcp=True) == 5


def test_why_a_daemon_did_not_start_is_said(fake: Settings) -> None:
    with sqlite3.connect(fake.data / "runs.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ProviderError, match="schema 99"):
        ensure_daemon(fake)


def test_the_log_is_bounded(fake: Settings) -> None:
    from voidbox_lab.daemon.serve import LOG_BYTES, LOG_FILES

    ensure_daemon(fake)
    assert LOG_BYTES * LOG_FILES <= 4 << 20
    assert "starts" in (fake.data / "logs" / "daemon.log").read_text()


def test_its_descriptor_limit_is_raised() -> None:
    """A login's soft limit of 1024 would fall to some fifteen boxes that hold all the connections they may."""
    script = """
import resource
from voidbox_lab.daemon import serve
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
serve._raise_descriptor_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, serve.MAX_DESCRIPTORS), hard))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"

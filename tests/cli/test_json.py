"""``--json`` and exit codes, command by command: standard output is JSON alone, errors are an object beside it."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import Place
from voidbox_lab.cli.app import run
from voidbox_lab.client import ensure_daemon
from voidbox_lab.errors import Cancelled, ProviderError, UserError, VoidboxError
from voidbox_lab.settings import Settings
from voidbox_lab.spec.api import ExecEvent, ExecExit, ExecOutput, ExecRequest


@pytest.fixture(scope="module")
def place(home: Place) -> Place:
    """A home with a daemon and nothing in it."""
    ensure_daemon(home.settings)
    return home


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("daemon status", dict),
        ("daemon start", dict),
        ("daemon token", dict),
        ("daemon openapi", dict),
        ("image list", list),
        ("image prune", dict),
        ("template list", list),
        ("template prune", dict),
        ("volume list", list),
        ("gc", dict),
        ("runs", list),
        ("runs prune", dict),
    ],
)
def test_one_document_and_nothing_else(place: Place, command: str, kind: type) -> None:
    """Nor is anything on standard error."""
    assert isinstance(place.json(*command.split()), kind)


def test_doctor_fails_in_json(place: Place) -> None:
    """The fake backend has no QEMU: the document says so, with the exit code of the host's side."""
    done = place.voidbox("doctor", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["ok"] is False
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("command", "code", "kind", "cause"),
    [
        ("show zz", 2, "user", "unknown-run"),
        ("show @last", 2, "user", "unknown-run"),
        ("logs run-000000000000", 2, "user", "unknown-run"),
        ("runs rm zz", 2, "user", "unknown-run"),
        ("image verify nothing", 3, "provider", None),
        ("volume inspect nothing", 2, "user", None),
        ("bench --effort 0", 2, "user", None),
        ("run nothing.yaml", 2, "user", None),
        ("run nothing.ipynb", 2, "user", None),
        ("validate", 2, "user", None),
        ("runs --bogus", 2, "user", "usage"),
        ("bogus", 2, "user", "usage"),
        ("show", 2, "user", "usage"),
        ("exec --memory 1 true", 2, "user", None),
    ],
)
def test_errors_are_an_object_on_standard_error(
    place: Place, command: str, code: int, kind: str, cause: str | None
) -> None:
    """In one line, with the exit code that it has without; wherever the option stands."""
    first, *rest = command.split()
    done = place.voidbox(*([first, "--json", *rest] if first == "exec" else [first, *rest, "--json"]))
    assert done.returncode == code, done.stderr
    assert done.stdout in {"", '{\n  "removed": []\n}\n'}
    (line,) = done.stderr.splitlines()
    error = json.loads(line)["error"]
    assert error["kind"] == kind
    assert cause is None or error["cause"] == cause
    assert error["message"]


def test_exec_in_json_lines(place: Place) -> None:
    """Its events as they come, its output in base64, its own code; what follows the command is the command's."""
    done = place.voidbox("exec", "--json", "--", "play", "exit-7")
    assert done.returncode == 7
    assert done.stderr == ""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["type"] for e in events if e["type"] != "output"] == ["started", "exit"]
    data = {e["stream"]: base64.b64decode(e["data"]) for e in events if e["type"] == "output"}
    assert data == {"stdout": b"to stdout\xff", "stderr": b"to stderr"}
    assert events[-1]["code"] == 7
    plain = place.voidbox("exec", "play", "--json", "exit-7", text=False)
    assert (plain.returncode, plain.stdout, plain.stderr) == (7, b"to stdout\xff", b"to stderr")


def test_a_time_out_in_json(place: Place) -> None:
    """Is an event, an error and a code."""
    done = place.voidbox("exec", "--json", "--timeout", "0.5", "slow")
    assert done.returncode == 124
    assert json.loads(done.stdout.splitlines()[-1])["timed_out"] is True
    assert json.loads(done.stderr)["error"] | {"message": ""} == {
        "kind": "limit", "type": "LimitExceeded", "message": "", "cause": "time", "limit": "time", "value": 0.5,
        "unit": "s", "source": "user",
    }  # fmt: skip


def test_no_daemon_is_the_hosts_side(place: Place) -> None:
    """Exit code 3, but 125 of exec and shell, whose codes are the command's."""
    env = {**place.env, "VOIDBOX_DAEMON": "http://127.0.0.1:9", "VOIDBOX_TOKEN": "x" * 43}
    nowhere = Place(place.settings, env)
    assert nowhere.voidbox("runs").returncode == 3
    assert nowhere.voidbox("exec", "true").returncode == 125
    assert nowhere.voidbox("shell", stdin=-3).returncode == 125
    assert nowhere.json("daemon", "status")["running"] is False


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ExecExit(code=0, duration_s=1), 0),
        (ExecExit(code=1, duration_s=1), 1),
        (ExecExit(code=None, signal=9, duration_s=1), 137),
        (ExecExit(code=None, signal=9, timed_out=True, duration_s=1), 124),
        (ProviderError("It is so."), 125),
        (UserError("It is so.", cause="denied"), 126),
        (UserError("It is so.", cause="not-found"), 127),
        (Cancelled("It is so."), 130),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_execs_codes(
    end: ExecEvent | VoidboxError,
    code: int,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same with and without JSON."""

    class Ends:
        def __init__(self, settings: Settings) -> None:
            return

        def __enter__(self) -> Ends:
            return self

        def close(self) -> None:
            return

        def execute(self, request: ExecRequest) -> Iterator[Any]:
            yield ExecOutput(stream="stdout", data=base64.b64encode(b"hi").decode())
            if isinstance(end, VoidboxError):
                raise end
            yield end

    monkeypatch.setattr("voidbox_lab.cli.which.Client", Ends)
    assert run(["exec", *(["--json"] if as_json else []), "true"]) == code
    said = capsys.readouterr()
    if as_json:
        assert json.loads(said.out.splitlines()[0])["type"] == "output"
        assert not said.err or json.loads(said.err)["error"]["kind"]
    else:
        assert said.out == "hi"


def test_ctrl_c_in_json(place: Place) -> None:
    """An object too, and 130."""
    with place.start("exec", "--json", "slow") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(said)["error"]["kind"] == "cancelled"


def test_stop_comes_last(place: Place) -> None:
    """It ends the daemon that the tests before it used."""
    assert place.json("daemon", "stop", "--if-idle") == {"ends": True}
    assert place.json("daemon", "stop") in ({"ends": False}, {"ends": True})

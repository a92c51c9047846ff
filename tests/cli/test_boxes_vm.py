"""``voidbox exec`` and ``voidbox doctor`` as a user calls them: real processes, one daemon, real boxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from voidbox_lab import images
from voidbox_lab.settings import Settings

pytestmark = pytest.mark.vm

BOUND_S = 240


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A home of its own over the shared image cache; its daemon is ended."""
    images.resolve(settings := Settings.from_env())
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "VOIDBOX_HOME": str(home), "VOIDBOX_CACHE": str(settings.cache)}
    yield env
    voidbox(env, "daemon", "stop")


def voidbox(env: dict[str, str], *argv: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """The command, to its end."""
    where = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        [sys.executable, "-m", "voidbox_lab.cli", *argv],
        env=env,
        capture_output=True,
        timeout=BOUND_S,
        check=False,
        **where,  # type: ignore[call-overload]
    )


def test_streams_input_and_code_are_the_commands_own(env: dict[str, str]) -> None:
    """Standard input goes in; output, errors and exit code come out, apart."""
    done = voidbox(
        env, "exec", "-i", "--memory", "256", "--", "sh", "-c", "tr a-z A-Z; echo err >&2; exit 7", stdin=b"in\n"
    )
    assert (done.stdout, done.returncode) == (b"IN\n", 7), done.stderr
    assert done.stderr == b"err\n"


def test_codes_of_our_own(env: dict[str, str]) -> None:
    """A time-out is 124; a program outside the allowlist cannot be executed: 126."""
    late = voidbox(env, "exec", "--memory", "256", "--timeout", "2", "--", "sleep", "100")
    assert (late.returncode, b"2 s" in late.stderr) == (124, True), late.stderr
    denied = voidbox(env, "exec", "--memory", "256", "--allow-command", "sh", "--", "cat", "/etc/hostname")
    assert denied.returncode == 126, denied.stderr
    # What the allowlist denies is denied to children too: the shell's own code for it is 126.
    child = voidbox(env, "exec", "--memory", "256", "--allow-command", "sh", "--", "sh", "-c", "cat /etc/hostname")
    assert child.returncode == 126, child.stderr
    assert b"ermission denied" in child.stderr


def test_a_program_that_is_not_there(env: dict[str, str]) -> None:
    """127, and the sentence names it."""
    done = voidbox(env, "exec", "--memory", "256", "--", "no-such-program")
    assert done.returncode == 127, done.stderr
    assert b"no-such-program" in done.stderr


def test_doctor_boots_a_box_and_measures(env: dict[str, str]) -> None:
    """Its JSON holds what a support request needs: accelerator, vsock, boot time, exec round trip."""
    done = voidbox(env, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    steps = {step["name"]: step for step in report["steps"]}
    assert report["ok"]
    assert {"image", "libvirt", "accelerator", "vsock", "boot", "exec", "keys"} <= steps.keys()
    assert steps["boot"]["seconds"] > 0


def test_a_stopped_daemon_cancels_the_command(env: dict[str, str]) -> None:
    """And says so: nobody's fault, nothing lost."""
    argv = [sys.executable, "-m", "voidbox_lab.cli", "exec", "-v", "--memory", "256", "--", "sleep", "100"]
    with subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"up after" in process.stderr.readline()
        voidbox(env, "daemon", "stop")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith(b"cancelled"), said

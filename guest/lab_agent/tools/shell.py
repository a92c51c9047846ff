"""The bash tool: one command in a process group of its own, bounded in time and output."""

from __future__ import annotations

import os
import select
import time
from _signal import SIGINT, SIGKILL, SIGPIPE, SIGTERM

from lab_agent.tools import denied
from lab_agent.tools.tool import Tool, ToolProblem

DEFAULT_S = 120
MAX_S = 3600
MAX_KEPT = 256 * 1024
"""Bytes kept of the beginning of a command's output, and as many of its end."""
_LINGER_S = 0.2
"""How long output is awaited after the shell has ended while a background process still holds the pipe."""
_SHELLS = ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/sh", "/usr/lib/voidbox/rt/busybox")
"""The last is ours, for images that have none."""
_SECRETS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")

DESCRIPTION = """Runs a command with bash and returns its output (standard output and error together) and its \
exit code if it is not 0. Each command starts in the working directory; variables and 'cd' do not last. \
There is no input."""


def tool(env: dict[str, str]) -> Tool:
    """The tool, for commands with the environment `env` minus what is the agent's own."""
    inner = environment(env)
    schema = {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "the command"},
            "timeout_s": {"type": "integer", "description": f"seconds it may take; default {DEFAULT_S}"},
        },
        "required": ["command"],
    }

    def call(given: dict) -> str:
        seconds = min(max(given.get("timeout_s", DEFAULT_S), 1), MAX_S)
        return run(given["command"], inner, seconds)

    return Tool("bash", DESCRIPTION, schema, call)


def environment(env: dict[str, str]) -> dict[str, str]:
    """`env` minus what is the agent's own, for programs it starts."""
    return {k: v for k, v in env.items() if k not in _SECRETS and k != "PYTHONPATH"}


def run(command: str, env: dict[str, str], seconds: float) -> str:
    """The command's output.

    Raises:
        ToolProblem: it failed, was killed, or took longer than `seconds`; what it printed is in the message.
    """
    if "\0" in command:
        raise ToolProblem("The command contains a NUL character.")
    reader, writer = os.pipe()
    try:
        pid = _spawn(command, env, writer)
    except OSError as e:
        os.close(reader)
        raise ToolProblem(f"bash cannot be started: {e.strerror}.") from e
    finally:
        os.close(writer)
    output = _Output()
    status = None
    try:
        status = _follow(pid, reader, output, time.monotonic() + seconds)
    finally:
        os.close(reader)
        if status is None:
            # Out of time, or interrupted: nothing of the command stays.
            _kill(pid)
    text = output.text()
    if status is None:
        raise ToolProblem(f"{text}\n[stopped: took longer than {seconds:g} s]".lstrip())
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        from signal import Signals  # an expensive one, and seldom needed

        raise ToolProblem(f"{text}\n[killed by {Signals(-code).name}]".lstrip())
    if code:
        note = denied.exec_note(text)
        raise ToolProblem("\n".join(filter(None, (text, f"[exit code {code}]", note))))
    return text or "[no output]"


def _spawn(command: str, env: dict[str, str], writer: int) -> int:
    shell = next((path for path in _SHELLS if os.path.exists(path)), _SHELLS[-1])
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, writer, 1),
        (os.POSIX_SPAWN_DUP2, writer, 2),
    ]
    # A session of its own: one signal to the group reaches every child.
    return os.posix_spawn(
        shell,
        ["sh" if shell == _SHELLS[-1] else os.path.basename(shell), "-c", command],
        env,
        file_actions=actions,
        setsid=True,
        setsigdef=[SIGTERM, SIGINT, SIGPIPE],
    )


def _follow(pid: int, reader: int, output: _Output, deadline: float) -> int | None:
    """Read until the command has ended and its pipe is empty; its wait status, or None when out of time."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    status: int | None = None
    is_open = True
    until = deadline
    while True:
        now = time.monotonic()
        if now >= until:
            return status
        if status is None:
            done, got = os.waitpid(pid, os.WNOHANG)
            if done:
                status, until = got, min(deadline, now + _LINGER_S)
        if not is_open:
            if status is not None:
                return status
            time.sleep(0.005)
            continue
        # Short waits while the shell runs, because its end is not an event on the pipe if a child holds it.
        if poll.poll(min(50, max(1, (until - now) * 1000))):
            data = os.read(reader, 65536)
            is_open = bool(data)
            output.add(data)


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, SIGKILL)
        os.waitpid(pid, 0)
    except OSError:
        return  # gone already


class _Output:
    """The beginning and the end of what was printed."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = MAX_KEPT - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        over = len(self._tail) - MAX_KEPT
        if over > 0:
            del self._tail[:over]
            self._dropped += over

    def text(self) -> str:
        middle = f"\n… {self._dropped} bytes left out …\n".encode() if self._dropped else b""
        return bytes(self._head + middle + self._tail).decode(errors="replace").rstrip("\n")

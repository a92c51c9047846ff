"""From a command line to an exit status: wires the parts together, ends well whatever happens.

Exit status: 0 with an answer; 1 without; 2 for a wrong command line; 143 after SIGTERM.
"""

from __future__ import annotations

import os
import sys
from _signal import SIG_IGN, SIGTERM, signal  # not `signal`, whose enums cost more than the agent

from lab_agent import VERSION, prompt, skills, tools
from lab_agent.events import Events
from lab_agent.http1 import HttpProblem, split_url
from lab_agent.loop import Outcome, Session
from lab_agent.mcp import McpProblem
from lab_agent.messages import ApiProblem, Client
from lab_agent.options import USAGE, Options, UsageProblem
from lab_agent.tools import shell

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from typing import BinaryIO

    from lab_agent.mcp.servers import Servers

MAX_PROMPT = 4 << 20
TERMINATED = 128 + SIGTERM


class _Terminated(BaseException):
    """SIGTERM came. Not an Exception, so that nothing on the way swallows it."""


def main(argv: list[str], env: dict[str, str], stdin: BinaryIO, stdout: BinaryIO) -> int:
    """Run the agent once. `stdin` and `stdout` are binary files; returns the exit status.

    Must run in the main thread: SIGTERM is handled while it runs, and put back as it was at the end.
    """
    try:
        options = Options(argv, env)
    except UsageProblem as e:
        sys.stderr.write(f"lab-agent: {e}\n\n{USAGE}")
        return 2
    if options.help or options.version:
        stdout.write((USAGE if options.help else f"lab-agent {VERSION}\n").encode())
        stdout.flush()
        return 0
    before = signal(SIGTERM, _terminate)
    try:
        return _run(options, env, stdin, stdout)
    except BrokenPipeError:
        return 1  # nobody listens any more
    except _Terminated:
        return TERMINATED
    finally:
        signal(SIGTERM, before)


def _terminate(*_: object) -> None:
    # Once: what follows is the last event, and must not be interrupted in turn.
    signal(SIGTERM, SIG_IGN)
    raise _Terminated


def _run(options: Options, env: dict[str, str], stdin: BinaryIO, stdout: BinaryIO) -> int:
    started: list[Servers] = []
    try:
        return _work(options, env, stdin, stdout, started)
    finally:
        for servers in started:
            servers.kill()


def _work(options: Options, env: dict[str, str], stdin: BinaryIO, stdout: BinaryIO, started: list[Servers]) -> int:
    events = Events(stdout, text_only=options.output_format == "text")
    client = session = None
    status = 1
    try:
        base_url = env.get("ANTHROPIC_BASE_URL", "")
        split_url(base_url)
        client = Client(base_url, env.get("ANTHROPIC_API_KEY") or env.get("ANTHROPIC_AUTH_TOKEN") or "", events)
        # Before all else: they start while this goes on.
        started += _servers(options, env)
        text = stdin.read(MAX_PROMPT).decode(errors="replace") if options.prompt == "-" else options.prompt
        found = skills.find(env.get("HOME", "/nonexistent"))
        toolbox = tools.builtin(env)
        for servers in started:
            servers.connect()
            toolbox.join(servers)
        cwd = os.getcwd()
        session = Session(
            client,
            toolbox,
            events,
            model=options.model,
            system=prompt.system_prompt(cwd, found, options.append_system_prompt),
            max_tokens=options.max_tokens,
        )
        events.init(
            cwd=cwd,
            model=options.model,
            tools=toolbox.names,
            skills=[s.name for s in found],
            servers=[name for servers in started for name in servers.names],
        )
        if not text.strip():
            raise HttpProblem("the prompt is empty")
        outcome = session.run(text, options.max_turns)
        status = int(outcome.is_error)
    except (ApiProblem, HttpProblem, McpProblem) as e:
        outcome = Outcome(str(e), "error_during_execution")
    except _Terminated:
        outcome = Outcome("Stopped by SIGTERM.", "error_terminated")
        status = TERMINATED
    events.result(
        outcome.text,
        is_error=outcome.is_error,
        subtype=outcome.subtype,
        turns=session.turns if session else 0,
        usage=session.usage if session else {},
        api_s=client.seconds if client else 0.0,
    )
    if outcome.is_error:
        sys.stderr.write(f"lab-agent: {outcome.text}\n")
    else:
        for servers in started:
            servers.end()
    return status


def _servers(options: Options, env: dict[str, str]) -> list[Servers]:
    """The MCP servers that were asked for, if any, starting."""
    if not options.mcp_config:
        return []
    # Not with the rest: most sessions have none.
    from lab_agent.mcp import config
    from lab_agent.mcp.servers import Servers

    configs = config.read(options.mcp_config)
    return [Servers(configs, shell.environment(env), start_s=options.mcp_start_s, call_s=options.mcp_call_s)]

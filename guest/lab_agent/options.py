"""The command line. Read by hand: argparse costs more to import than the rest of the agent."""

from __future__ import annotations

DEFAULT_MODEL = "claude-sonnet-4-5"
USAGE = """usage: lab-agent -p PROMPT [options]

  -p, --print PROMPT        what to do; '-' reads it from standard input
  --model NAME              the model (default: ANTHROPIC_MODEL)
  --output-format FORMAT    stream-json (default) or text
  --max-turns N             answers of the model at most (default 50)
  --max-tokens N            tokens in one answer at most (default 8192)
  --append-system-prompt T  added to the system prompt
  --mcp-config FILE         MCP servers to start: {"mcpServers": {NAME: {"command", "args", "env", "tools"}}}
  --verbose                 accepted and ignored: events are always complete
  --include-partial-messages  accepted and ignored: text is always streamed
  --version

environment: ANTHROPIC_BASE_URL (http only), ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN, ANTHROPIC_MODEL;
MCP_TIMEOUT, MCP_TOOL_TIMEOUT: bounds on the start of MCP servers and on a call of their tools, in milliseconds
"""

_VALUED = {
    "-p": "prompt",
    "--print": "prompt",
    "--model": "model",
    "--output-format": "output_format",
    "--max-turns": "max_turns",
    "--max-tokens": "max_tokens",
    "--append-system-prompt": "append_system_prompt",
    "--mcp-config": "mcp_config",
}
_IGNORED = {"--verbose", "--include-partial-messages"}
_MAX_WAIT_MS = 24 * 3600 * 1000


class UsageProblem(Exception):
    """The command line is wrong; the message says how."""


class Options:
    """What was asked for."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        values: dict[str, str] = {}
        words = iter(argv)
        self.help = self.version = False
        for word in words:
            name, equals, value = word.partition("=")
            if word in {"-h", "--help"}:
                self.help = True
            elif word == "--version":
                self.version = True
            elif word in _IGNORED:
                continue
            elif name in _VALUED:
                given = value if equals else next(words, None)
                if given is None:
                    raise UsageProblem(f"{name} needs a value")
                values[_VALUED[name]] = given
            else:
                raise UsageProblem(f"unknown option {word!r}")
        self.prompt = values.get("prompt", "")
        self.model = values.get("model") or env.get("ANTHROPIC_MODEL") or DEFAULT_MODEL
        self.output_format = values.get("output_format", "stream-json")
        if self.output_format not in {"stream-json", "text"}:
            raise UsageProblem(f"--output-format is stream-json or text, not {self.output_format!r}")
        self.max_turns = _number(values, "max_turns", 50, 10_000)
        self.max_tokens = _number(values, "max_tokens", 8192, 1 << 20)
        self.append_system_prompt = values.get("append_system_prompt", "")
        self.mcp_config = values.get("mcp_config", "")
        self.mcp_start_s = _milliseconds(env, "MCP_TIMEOUT", 120_000)
        self.mcp_call_s = _milliseconds(env, "MCP_TOOL_TIMEOUT", 300_000)
        if not (self.prompt or self.help or self.version):
            raise UsageProblem("there is no prompt; give one with -p, or '-p -' to read it from standard input")


def _milliseconds(env: dict[str, str], name: str, default: int) -> float:
    """A bound of the environment, in seconds."""
    text = env.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_WAIT_MS:
        raise UsageProblem(f"{name} is a number of milliseconds from 1 to {_MAX_WAIT_MS}, not {text!r}")
    return int(text) / 1000


def _number(values: dict[str, str], name: str, default: int, most: int) -> int:
    text = values.get(name, str(default))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise UsageProblem(f"--{name.replace('_', '-')} is a number from 1 to {most}, not {text!r}")
    return int(text)

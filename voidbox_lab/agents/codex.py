"""codex (npm ``@openai/codex``, Apache-2.0), tried with 0.169.0.

One static binary. It speaks the Responses API only, and reads how to do so from its own configuration file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from voidbox_lab.agents.codex_stream import CodexStreamParser
from voidbox_lab.agents.contract import HOME, MCP_CALL_S, MCP_START_S, Launch, ModelApi, skill_files
from voidbox_lab.spec import McpSkill, VoidBoxSpec

CONFIG_FILE = f"{HOME}/.codex/config.toml"
TOKEN_ENV = "VOIDBOX_TOKEN"  # noqa: S105 - the name of a variable
_CONFIG = """\
# The box is the limit, so codex sets none of its own and asks nobody.
approval_policy = "never"
sandbox_mode = "danger-full-access"
model_provider = "voidbox"
# There is no network: without these it tries to phone home first, or offers what needs one.
check_for_update_on_startup = false
web_search = "disabled"
analytics = { enabled = false }
feedback = { enabled = false }
features = { plugins = false, apps = false }
skills = { bundled = { enabled = false } }
history = { persistence = "none" }
shell_environment_policy = { exclude = ["%(token)s"] }

[model_providers.voidbox]
name = "voidbox"
wire_api = "responses"
env_key = "%(token)s"
"""


class Codex:
    """See `contract.Adapter`."""

    name = "codex"
    layer = "codex"
    api: ModelApi = "responses"
    skills_root = f"{HOME}/.codex/skills"

    def prepare(self, stage: VoidBoxSpec, base_url: str, token: str) -> Launch:
        """Headless. The prompt goes through standard input: an argument holds 128 KiB at most (execve(2))."""
        assert stage.model is not None, "an agent has a model"
        argv = ("codex", "exec", "--json", "--skip-git-repo-check", "--model", stage.model.name, "-")
        files = skill_files(self, stage)
        files[CONFIG_FILE] = _config(base_url, stage.servers).encode()
        return Launch(argv=argv, env={"HOME": HOME, TOKEN_ENV: token}, files=files, stdin=stage.prompt.encode())

    def parser(self) -> CodexStreamParser:
        """A new parser."""
        return CodexStreamParser()


def _config(base_url: str, servers: Sequence[McpSkill]) -> str:
    lines = [_CONFIG % {"token": TOKEN_ENV} + f"base_url = {_toml(base_url + '/v1')}"]
    for skill in servers:
        program, *arguments = skill.command
        lines += [
            f"\n[mcp_servers.{_toml(skill.name)}]",
            f"command = {_toml(program)}",
            f"args = {_toml(arguments)}",
            f"env = {_toml(skill.env)}",
            # A session begins with all its tools or not at all.
            "required = true",
            f"startup_timeout_sec = {MCP_START_S}",
            f"tool_timeout_sec = {MCP_CALL_S}",
        ]
        if skill.tools is not None:
            lines.append(f"enabled_tools = {_toml(skill.tools)}")
    return "\n".join(lines) + "\n"


def _toml(value: str | Sequence[str] | Mapping[str, str]) -> str:
    """A value in TOML 1.0. Its basic strings are JSON's, but for DEL, which it wants escaped as well."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(_toml(v) for v in value) + "]"

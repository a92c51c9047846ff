"""The agents there are."""

from __future__ import annotations

from voidbox_lab.agents.claude_code import ClaudeCode
from voidbox_lab.agents.codex import Codex
from voidbox_lab.agents.command import Command
from voidbox_lab.agents.contract import Adapter
from voidbox_lab.agents.lab_agent import LabAgent
from voidbox_lab.errors import UserError

_ADAPTERS: dict[str, Adapter] = {a.name: a for a in (LabAgent(), ClaudeCode(), Codex())}
_COMMAND = Command()


def names() -> list[str]:
    """All agents' names, the default first."""
    return list(_ADAPTERS)


def adapter(name: str) -> Adapter:
    """The adapter of the agent `name`, or of plain commands.

    Raises:
        UserError: there is none.
    """
    if name == _COMMAND.name:
        return _COMMAND
    if name not in _ADAPTERS:
        raise UserError(f"There is no agent {name!r}; use one of {', '.join(_ADAPTERS)}.", cause="unknown-agent")
    return _ADAPTERS[name]

"""Agents: how each agent CLI is started in a box, and how what it prints becomes events.

`adapter` finds one by name. What an adapter is, and what it must not do, is in `contract`.
"""

from voidbox_lab.agents.contract import Adapter, AgentResult, Launch, Parser
from voidbox_lab.agents.registry import adapter, names

__all__ = ["Adapter", "AgentResult", "Launch", "Parser", "adapter", "names"]

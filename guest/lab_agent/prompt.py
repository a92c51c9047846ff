"""The system prompt. Nothing in it changes from run to run but what the box has, so answers can be replayed."""

from __future__ import annotations

from lab_agent.skills import Skill

_HEAD = """You are an agent that works inside an isolated machine of its own. You have a shell and file tools; \
use them to do what the user asks, and check your work by running it.

The working directory is {cwd}. Files for you are in {cwd}/input; put files you want to hand over into \
{cwd}/output. There is usually no network. Nobody can answer questions while you work: decide, and say what \
you decided.

When you are done, answer in concise Markdown. State only what you have found out, with its numbers."""


def system_prompt(cwd: str, skills: list[Skill], extra: str) -> str:
    """The prompt for a session."""
    parts = [_HEAD.format(cwd=cwd)]
    if skills:
        parts.append("Skills, each a procedure to follow where it applies; read its file before you begin:")
        parts.append("\n".join(f"- {s.name} ({s.path}): {' '.join(s.description.split())}" for s in skills))
    if extra:
        parts.append(extra)
    return "\n\n".join(parts)

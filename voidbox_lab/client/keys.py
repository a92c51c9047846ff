"""Which environment variables are model keys and addresses. They go to the daemon's memory and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = frozenset({"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OLLAMA_HOST"})
_PREFIX = "VOIDBOX_API_KEY_"
"""Keys for other servers: VOIDBOX_API_KEY_OPENROUTER_AI is for openrouter.ai."""


def is_key(name: str) -> bool:
    """Whether the environment variable `name` is for the gateway."""
    return name in _NAMES or name.startswith(_PREFIX)


def found(env: Mapping[str, str]) -> dict[str, str]:
    """Those of `env` that are for the gateway and not empty."""
    return {name: value for name, value in env.items() if is_key(name) and value.strip()}

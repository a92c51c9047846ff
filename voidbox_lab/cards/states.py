"""States of runs and stages as a shape, so that nobody has to tell colours apart."""

from __future__ import annotations

GLYPHS = {
    "queued": "○",
    "booting": "◔",
    "provisioning": "◑",
    "running": "●",
    "collecting": "◕",
    "retrying": "↻",
    "paused": "‖",
    "succeeded": "✓",
    "failed": "✕",
    "cancelled": "⊘",
    "skipped": "»",
    "interrupted": "!",
}
"""Characters without an emoji form."""


def glyph(state: str | None) -> str:
    """The shape of a state."""
    return GLYPHS.get(state or "", "·")

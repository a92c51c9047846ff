"""Text from elsewhere, a guest's above all, without what a terminal or a browser would obey.

Not for escaping: HTML is escaped where it is made.
"""

from __future__ import annotations

import re

# ECMA-48: CSI (ESC [ … final byte), OSC/DCS/PM/APC/SOS strings up to BEL or ST, then two-byte escapes.
# String bodies are bounded by their terminator or by the end of the text, so a cut sequence goes as a whole.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# What remains of C0 and C1 except tab and newline; bidirectional overrides and isolates (Unicode TR9),
# which could make a command read other than it is; lone surrogates, which no UTF-8 output can carry.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` without terminal control sequences; ``\\r\\n`` and lone ``\\r`` become newlines."""
    text = _ESCAPES.sub("", text)
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str, width: int) -> str:
    """`text` cleaned, on one line, cut to `width` characters with an ellipsis."""
    flat = " ".join(clean(text[: 8 * width]).split())
    return flat if len(flat) <= width else flat[: max(1, width - 1)] + "…"


def bounded(text: str, most: int) -> str:
    """The beginning of `text`, cleaned, `most` characters of it, and a line about the rest."""
    shown = clean(text[: most + 1])
    return shown if len(text) <= most else f"{shown[:most]}\n… {len(text) - most:,} characters more"

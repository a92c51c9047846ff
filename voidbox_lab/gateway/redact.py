"""Keeps a real key out of what goes back to a guest, should an upstream ever repeat it."""

from __future__ import annotations

MASK = b"[redacted]"


class Redactor:
    """Replaces `secret` in a stream, also where it straddles two pieces.

    Holds back only an end of a piece that could be the secret's beginning, so events that end in a line
    break pass at once.
    """

    def __init__(self, secret: str | None) -> None:
        # Short strings are no keys (``none``, ``ollama``), and replacing them would harm answers.
        self._secret = secret.encode() if secret and len(secret) >= 8 else b""
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """`data`, redacted, as far as it is certain."""
        if not self._secret:
            return data
        data = (self._held + data).replace(self._secret, MASK)
        keep = next(
            (n for n in range(min(len(self._secret) - 1, len(data)), 0, -1) if data.endswith(self._secret[:n])), 0
        )
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def end(self) -> bytes:
        """What was held back."""
        held, self._held = self._held, b""
        return held

    def whole(self, data: bytes) -> bytes:
        """`data`, redacted, in one piece."""
        return data.replace(self._secret, MASK) if self._secret else data

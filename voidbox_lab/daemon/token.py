"""The token of the TCP listener: one per data directory, made at first use, in a file of this user alone.

Reading one is `settings.read_token`, which clients use as well.
"""

from __future__ import annotations

import hmac
import os
import secrets
import tempfile
from pathlib import Path

from voidbox_lab.errors import ProviderError
from voidbox_lab.settings import Settings, read_token

TOKEN_BYTES = 32


def token(settings: Settings) -> str:
    """The token in ``<data>/token``, made if there is none.

    Raises:
        UserError: the file is open to others, or holds no token.
        ProviderError: it cannot be made.
    """
    path = settings.token_file
    try:
        return read_token(path)
    except FileNotFoundError:
        try:
            _make(path)
        except OSError as e:
            raise ProviderError(f"The token file {path} cannot be made: {e.strerror}.", cause="store") from e
        return read_token(path)


def _make(path: Path) -> None:
    """Whole or not at all, whoever else makes one at the same time: link(2) fails if the name is taken."""
    # mkstemp: mode 0600 from the beginning.
    handle, name = tempfile.mkstemp(prefix=".token-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return
    finally:
        Path(name).unlink()


def matches(given: bytes, wanted: str) -> bool:
    """Whether an Authorization header's value carries the token; the time it takes says nothing of the token."""
    scheme, _, value = given.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(b" "), wanted.encode())

"""A connection to a Valkey or Redis server: bounded, made anew when it broke, silent about its password.

Not for what is kept there (`valkey`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import anyio
from valkey.asyncio import BlockingConnectionPool, Valkey
from valkey.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,  # noqa: A004 - the client's, not the built-in one
    NoScriptError,
    TimeoutError,  # noqa: A004
    ValkeyError,
)

from voidbox_lab.errors import ProviderError, UserError

SCHEMES = ("valkey", "valkeys", "redis", "rediss", "unix")
CONNECT_S = 3.0
REPLY_S = 5.0
"""How long a connection may be silent while an answer is due."""
CALL_S = 20.0
"""Bound on a call, with all its attempts."""
PAUSES_S = (0.0, 0.1, 0.5, 1.5, 3.0)
"""Pauses before the attempts of a call: a server that restarts is waited for."""
MAX_CONNECTIONS = 8


@dataclass(frozen=True)
class Address:
    """A store's URL, taken apart. Its `repr` and `label` hold no password."""

    url: str = field(repr=False)
    label: str
    prefix: str
    """In front of every key, so that several stores share a server."""
    secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """From ``valkey://[user:password@]host[:port][/db][?prefix=…]``; see docs/settings.md.

        Raises:
            UserError: it is not one; the URL is not repeated.
        """
        wrong = UserError(
            "VOIDBOX_STORE is no URL of a Valkey server; it looks like valkey://user:password@host:6379/0, "
            "with %-escapes in the password."
        )
        try:
            parts = urlsplit(url)
            port, host, options = parts.port, parts.hostname, dict(parse_qsl(parts.query))
        except ValueError:
            raise wrong from None
        prefix = options.pop("prefix", "voidbox")
        tls = {"ssl_ca_certs"}
        allowed: set[str] = {"unix": {"db"}, "valkeys": tls, "rediss": tls}.get(parts.scheme, set())
        database = options.get("db", "0") if parts.scheme == "unix" else parts.path.strip("/") or "0"
        if (
            parts.scheme not in SCHEMES
            or not database.isdecimal()
            or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", prefix)
        ):
            raise wrong
        if options.keys() - allowed or (parts.scheme == "unix") == bool(host):
            raise wrong
        place = parts.path if parts.scheme == "unix" else f"{host}:{port or 6379}/{database}"
        password = parts.password or ""
        return cls(
            url=urlunsplit(parts._replace(query=urlencode(options))),
            label=f"{parts.scheme}://{place}",
            prefix=prefix,
            secrets=tuple(s for s in {password, unquote(password)} if s),
        )


class Link:
    """Calls to the server at `address`. Belongs to one event loop; close it with `aclose`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        try:
            pool = BlockingConnectionPool.from_url(
                address.url,
                max_connections=MAX_CONNECTIONS,
                timeout=REPLY_S,
                socket_timeout=REPLY_S,
                socket_connect_timeout=CONNECT_S,
                client_name="voidbox-lab",
            )
        except (ValueError, TypeError):
            raise UserError(f"The store {address.label} cannot be addressed; check VOIDBOX_STORE.") from None
        self._client: Any = Valkey.from_pool(pool)
        self._closed = False

    async def call(self, *command: str | bytes | int) -> Any:
        """The answer to `command`, which is sent again if an attempt's answer was lost.

        Raises:
            ProviderError: cause ``store``: no answer within `CALL_S`, or a refusal.
        """
        return await self._attempts(command, None)

    async def script(self, source: str, keys: Sequence[str], values: Sequence[str | bytes]) -> Any:
        """`call` of a Lua script."""
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        return await self._attempts(("EVALSHA", sha, len(keys), *keys, *values), source)

    async def aclose(self) -> None:
        """Close all connections. Closing twice is allowed."""
        self._closed = True
        await self._client.aclose()

    async def _attempts(self, command: Sequence[str | bytes | int], source: str | None) -> Any:
        if self._closed:
            raise ProviderError(f"The store {self.address.label} is closed.", cause="store")
        why: Exception | None = None
        with anyio.move_on_after(CALL_S):
            for pause in PAUSES_S:
                await anyio.sleep(pause)
                try:
                    return await self._once(command, source)
                except (AuthenticationError, AuthorizationError) as e:
                    why = e
                    break
                except (ConnectionError, TimeoutError, OSError) as e:
                    why = e
                except ValkeyError as e:
                    why = e
                    break
        # Not chained: what the client says may repeat a command with its arguments.
        raise ProviderError(
            f"The store {self.address.label} does not do its work ({self._plain(why)}); "
            "check that server, and VOIDBOX_STORE.",
            cause="store",
        ) from None

    async def _once(self, command: Sequence[str | bytes | int], source: str | None) -> Any:
        try:
            return await self._client.execute_command(*command)
        except NoScriptError:
            if source is None:
                raise
            return await self._client.execute_command("EVAL", source, *command[2:])

    def _plain(self, error: Exception | None) -> str:
        """What `error` says, on a line of bounded length, without the password."""
        text = " ".join(str(error).split()) if error else f"no answer within {CALL_S:g} s"
        for secret in self.address.secrets:
            text = text.replace(secret, "***")
        return text[:200] or type(error).__name__

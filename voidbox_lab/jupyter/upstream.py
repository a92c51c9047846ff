"""The daemon, as the Jupyter server asks it: its answers passed on as they are, its absence put into words.

A daemon is never started from here. Whoever looks at a panel has not asked for one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from voidbox_lab.client.protocol import LOST, STREAM_TIMEOUT, lost
from voidbox_lab.client.way import way
from voidbox_lab.errors import LimitExceeded, ProviderError, VoidboxError
from voidbox_lab.settings import Settings

MAX_STREAMS = 16
"""Most event streams at once of one Jupyter server."""
MAX_ANSWER = 64 << 20
"""Bytes of the longest answer that is passed on."""


@dataclass(frozen=True)
class Answer:
    """What the daemon said."""

    status: int
    media_type: str
    body: bytes


class Upstream:
    """One per Jupyter server."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings
        self._http: httpx.AsyncClient | None = None
        self._where = ""
        self._streams = 0

    async def aclose(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def ask(self, method: str, path: str, params: Mapping[str, str]) -> Answer:
        """One request.

        Raises:
            UserError: the settings of this server's environment are wrong.
            ProviderError: no daemon runs (cause ``no-daemon``), or it went away while it answered.
            LimitExceeded: its answer is longer than `MAX_ANSWER`.
        """
        http = self._connected()
        try:
            async with http.stream(method, path, params=params) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER:
                        raise LimitExceeded(
                            f"The answer to {path} has more than {MAX_ANSWER >> 20} MiB; use `voidbox show`.",
                            limit="answer",
                            value=MAX_ANSWER,
                            unit="bytes",
                        )
        except LOST as e:
            raise self._lost(path, e) from e
        media_type = response.headers.get("content-type", "application/json")
        return Answer(response.status_code, media_type, bytes(body))

    @asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, str], headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """An answer that comes bit by bit; of one that is no success the body has been read. Errors as `ask`."""
        if self._streams >= MAX_STREAMS:
            raise LimitExceeded(
                f"{MAX_STREAMS} runs are being followed from this Jupyter server; close some of their tabs.",
                limit="streams",
                value=MAX_STREAMS,
            )
        http = self._connected()
        self._streams += 1
        try:
            async with http.stream(
                "GET", path, params=params, headers=headers, timeout=STREAM_TIMEOUT
            ) as response:
                if not response.is_success:
                    await response.aread()
                yield response
        except LOST as e:
            raise self._lost(path, e) from e
        finally:
            self._streams -= 1

    def _connected(self) -> httpx.AsyncClient:
        if self._http is None:
            # Not when the server starts: wrong settings are for whoever opens the panel to read.
            settings = self._settings or Settings.from_env()
            there = way(settings)
            self._http = there.async_client()
            self._where = "" if settings.daemon is None else there.where
        return self._http

    def _lost(self, path: str, error: Exception) -> VoidboxError:
        if not isinstance(error, httpx.ConnectError):
            return lost(f"asking for {path}", error)
        if self._where:
            return ProviderError(
                f"No daemon answers at {self._where}, which VOIDBOX_DAEMON names; start it there, or look at the "
                "tunnel.",
                cause="no-daemon",
            )
        return ProviderError(
            "One starts with the first run of a notebook, or with `voidbox daemon start`.", cause="no-daemon"
        )

"""The host's resolver in threads of its own: a stage that asks for slow names keeps nobody else waiting."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from voidbox_lab.gateway.egress.addresses import Address

THREADS = 4
"""Names that one stage may have resolved at the same time; more wait."""


class Resolver:
    """Resolves names as other programs here do (getaddrinfo(3)), hosts file and search domains included."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="egress-names")

    async def __call__(self, host: str) -> Sequence[Address]:
        """All addresses of `host`, best first. Cancelled, it leaves a thread to the resolver's own time-out.

        Raises:
            OSError: there is none.
        """
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _look_up, host)
        return [ip_address(text) for text in dict.fromkeys(found)]

    def close(self) -> None:
        """Let go of the threads, without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str) -> list[str]:
    """Blocking."""
    return [str(row[4][0]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]

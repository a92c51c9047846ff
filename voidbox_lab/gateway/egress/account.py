"""One connection's account: who, where to, how many bytes, and why it ended."""

from __future__ import annotations

import time
from typing import Literal

import anyio

from voidbox_lab.gateway.egress.bounds import Usage
from voidbox_lab.gateway.egress.targets import Target
from voidbox_lab.spec.events import Egress


class Account:
    """Filled as the connection goes on. What ends it early says so here, and cancels `scope`.

    `host` is empty until something was asked for.
    """

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._began = self._touched = time.monotonic()
        self.scope = anyio.CancelScope()
        self.host, self.port = "", 0
        self.verdict: Literal["allowed", "denied", "failed"] = "failed"
        self.rule = self.reason = ""
        self.address: str | None = None
        self.bytes_out = self.bytes_in = 0
        self.hit: str | None = None
        """What it ran into, for `spec.events.Denied.rule`."""

    def goes_to(self, target: Target) -> None:
        """The guest named `target`."""
        self.host, self.port = target.host, target.port

    def settle(self, verdict: Literal["allowed", "denied", "failed"], rule: str, reason: str = "") -> None:
        """It was decided."""
        self.verdict, self.rule, self.reason = verdict, rule, reason

    def sent(self, count: int) -> None:
        """`count` bytes came from the box."""
        self.bytes_out += count
        self._moved(count)

    def received(self, count: int) -> None:
        """`count` bytes came from the other side."""
        self.bytes_in += count
        self._moved(count)

    def _moved(self, count: int) -> None:
        self._touched = time.monotonic()
        if not self._usage.moved(count):
            self.hit = "egress_limits.mb"
            self.end(self._usage.sentence("mb"))

    def end(self, reason: str) -> None:
        """End it now, because of `reason`."""
        self.reason = self.reason or reason
        self.scope.cancel()

    async def watch(self, idle_s: float) -> None:
        """End it once nothing has moved for `idle_s` seconds; runs until it is cancelled."""
        while (left := self._touched + idle_s - time.monotonic()) > 0:  # noqa: ASYNC110
            await anyio.sleep(left)  # it is put off by every byte, without a word
        self.end(f"nothing was sent in either direction for {idle_s:g} s")

    @property
    def event(self) -> Egress:
        """The account as an event."""
        return Egress(
            host=self.host[:300],
            port=self.port,
            verdict=self.verdict,
            rule=self.rule[:320],
            address=self.address,
            bytes_out=self.bytes_out,
            bytes_in=self.bytes_in,
            duration_s=round(time.monotonic() - self._began, 3),
            reason=self.reason[:1000],
        )

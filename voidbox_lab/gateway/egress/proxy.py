"""The forward proxy of one stage: CONNECT (RFC 9110 section 9.3.6) and plain ``http://`` requests.

Not for what is allowed (`rules`), nor for what HTTP means (h11, in `client` and `forward`). Every connection
carries one request, ends within its bounds, and has its end recorded before `EgressProxy.aclose` returns.
"""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import h11
from anyio.abc import SocketStream, TaskStatus

from voidbox_lab.gateway.egress.account import Account
from voidbox_lab.gateway.egress.addresses import Address
from voidbox_lab.gateway.egress.audit import Audit, Record
from voidbox_lab.gateway.egress.bounds import Bounds, Usage
from voidbox_lab.gateway.egress.client import RESET, BadRequest, Client
from voidbox_lab.gateway.egress.forward import BadResponse, forward
from voidbox_lab.gateway.egress.local import LocalStream, listening
from voidbox_lab.gateway.egress.resolver import Resolver
from voidbox_lab.gateway.egress.rules import Resolve, Rules
from voidbox_lab.gateway.egress.targets import Target, parse_authority, parse_url
from voidbox_lab.gateway.egress.tunnel import tunnel
from voidbox_lab.spec import Policy

log = logging.getLogger(__name__)


class _Refused(Exception):
    """The guest gets an answer instead of a connection."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class EgressProxy:
    """Lets out what `policy` allows, and records every connection.

    Args:
        record: gets an event at each connection's end; what waits there delays that connection alone.
        resolve: instead of the host's own resolver.
    """

    def __init__(
        self, policy: Policy, record: Record, *, bounds: Bounds | None = None, resolve: Resolve | None = None
    ) -> None:
        self._bounds = bounds or Bounds()
        self._resolver = Resolver()
        self._rules = Rules(policy, resolve or self._resolver)
        self._usage = Usage(policy.egress_limits)
        self._audit = Audit(record)
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()

    async def serve(self, path: Path, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen at `path`, for this user only, until `aclose`."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks, listening(path, self._connection, tasks):
                    task_status.started()
                    await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._bounds.record_s):
                await self._audit.close()
            self._resolver.close()
            self._done.set()

    async def aclose(self) -> None:
        """End all connections; returns once their ends are recorded. Only for one that serves."""
        self._scope.cancel()
        await self._done.wait()

    async def _connection(self, stream: LocalStream) -> None:
        async with stream:
            if self._usage.crowded(self._bounds.turned_away):
                return
            account = Account(self._usage)
            limit = self._usage.enter()
            try:
                with account.scope:
                    await self._serve(Client(stream, self._bounds), account, limit)
            except RESET:
                account.reason = account.reason or "the box reset the connection"
            except Exception as error:
                log.exception("a connection through the proxy failed")
                account.reason = f"the proxy failed ({type(error).__name__}); please report it"
            except anyio.get_cancelled_exc_class():
                account.reason = account.reason or "it was open when its box was closed"
                raise
            finally:
                self._usage.leave()
                if account.host:
                    with anyio.CancelScope(shield=True), anyio.move_on_after(self._bounds.record_s):
                        await self._audit.ended(account.event, account.hit)

    async def _serve(self, client: Client, account: Account, limit: str | None) -> None:
        """One request, if there is any."""
        try:
            request = await client.request()
        except BadRequest as error:
            await self._malformed(client, account, error)
            return
        if request is None:
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(account.watch, self._bounds.idle_s)
            await self._answered(client, request, account, limit)
            tasks.cancel_scope.cancel()

    async def _answered(self, client: Client, request: h11.Request, account: Account, limit: str | None) -> None:
        try:
            try:
                await self._carry(client, request, account, limit)
            except BadRequest as error:
                await self._malformed(client, account, error)
            except _Refused as refusal:
                await client.refuse(refusal.status, account.rule, account.reason)
        except RESET:
            account.reason = account.reason or "one side reset the connection"

    async def _malformed(self, client: Client, account: Account, error: BadRequest) -> None:
        account.host = account.host or "(malformed)"
        account.hit = "request"
        account.settle("denied", account.hit, str(error))
        await client.refuse(error.status, account.rule, account.reason)

    async def _carry(self, client: Client, request: h11.Request, account: Account, limit: str | None) -> None:
        target, path = _asked(request)
        account.goes_to(target)
        if limit is not None:
            account.hit = f"egress_limits.{limit}"
            account.settle("denied", account.hit, self._usage.sentence(limit))
            raise _Refused(429)
        async with await self._connect(target, account) as server:
            if path is None:
                await tunnel(client.stream, server, account, await client.switch())
                return
            try:
                await forward(request, target, path, client, server, account, self._bounds)
            except BadResponse as error:
                account.settle("failed", account.rule, str(error))
                raise _Refused(502) from None

    async def _connect(self, target: Target, account: Account) -> SocketStream:
        """A connection to `target` if it is allowed."""
        seconds = self._bounds.connect_s
        with anyio.move_on_after(seconds):
            verdict = await self._rules.judge(target)
            account.settle(verdict.what, verdict.rule, verdict.reason)
            if verdict.addresses:
                account.address = str(verdict.addresses[0])
            if verdict.what == "denied":
                account.hit = "egress"
                raise _Refused(403)
            if verdict.what == "failed":
                raise _Refused(502)
            return await self._reach(target, verdict.addresses, account)
        account.settle("failed", account.rule, f"{target} could not be reached within {seconds:g} s")
        raise _Refused(504)

    async def _reach(self, target: Target, addresses: tuple[Address, ...], account: Account) -> SocketStream:
        """A connection to the first of `addresses` that takes one. They are literal: nothing is resolved again."""
        share = self._bounds.connect_s / len(addresses)
        why = "timed out"
        for address in addresses:
            account.address = str(address)
            try:
                with anyio.move_on_after(share):
                    return await anyio.connect_tcp(str(address), target.port)
            except OSError as error:
                cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
                why = (cause.strerror or str(cause)).lower()
        account.settle("failed", account.rule, f"{target} could not be reached: {why}")
        raise _Refused(502)


def _asked(request: h11.Request) -> tuple[Target, str | None]:
    """Where to, and for a plain request the path there.

    Raises:
        BadRequest: a target that cannot be.
    """
    text = request.target.decode("ascii", "replace")
    try:
        if request.method == b"CONNECT":
            return parse_authority(text), None
        return parse_url(text)
    except ValueError as error:
        raise BadRequest(str(error)) from None

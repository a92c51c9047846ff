"""Carries one model request: to its upstream, back to the guest, through the meter.

Ends at once when the guest hangs up or the stage is revoked, and then closes the upstream. Not for
deciding who may ask what; `app` has done that.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio import CancelScope
from starlette.types import Message, Receive, Send

from voidbox_lab.errors import LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.gateway.api import error_body, error_message, stream_error
from voidbox_lab.gateway.limits import Limits
from voidbox_lab.gateway.meter import Meter, StreamMeter
from voidbox_lab.gateway.prices import cost_usd
from voidbox_lab.gateway.redact import Redactor
from voidbox_lab.gateway.session import Live
from voidbox_lab.gateway.upstream import Answer, Ask, Upstream, UpstreamBroke
from voidbox_lab.spec import Tokens
from voidbox_lab.spec.events import ModelCall

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Exchange:
    """One request of a registered stage. `run` it once; `call` then says what became of it."""

    id: str
    live: Live
    ask: Ask
    upstream: Upstream
    limits: Limits
    receive: Receive
    send: Send
    key: str | None = None
    """The real key, only to keep it out of the answer."""
    hide_usage: bool = False
    status: int = 0
    meter: Meter = field(init=False)
    _begun: float = field(init=False)
    _first_byte: float | None = None
    _finished: bool = False
    _scope: CancelScope = field(default_factory=CancelScope, init=False)
    _on_end: Callable[[ModelCall], None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.ask.api)
        self._begun = time.monotonic()

    async def run(self, on_end: Callable[[ModelCall], None] | None) -> None:
        """Carry the request to its end, whatever that is; then report it."""
        self._on_end = on_end
        with self._scope:
            self.live.in_flight.add(self)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._until_hung_up, tasks.cancel_scope)
                    await self._carry()
                    tasks.cancel_scope.cancel()
            finally:
                self.report()
                self.live.land(self)
        if self.live.revoked and not self._finished:
            await self._fail(401, "The stage has ended; its token is no longer valid.")

    def cancel(self) -> None:
        """See `session.InFlight`."""
        self._scope.cancel()

    def report(self) -> None:
        """See `session.InFlight`."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self.call())

    def call(self) -> ModelCall:
        """The record of this exchange so far."""
        model = self.live.session.model
        tokens = self.meter.tokens
        refused = self.status >= 400
        return ModelCall(
            request=self.id,
            model=model.name,
            source="scripted" if model.provider == "scripted" else "live",
            status=self.status,
            tokens=tokens or Tokens(),
            cost_usd=cost_usd(model, Tokens() if refused and tokens is None else tokens),
            duration_s=time.monotonic() - self._begun,
            first_byte_s=self._first_byte,
        )

    async def _until_hung_up(self, scope: CancelScope) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self._finished = True  # nobody is there to be told
        scope.cancel()

    async def _carry(self) -> None:
        try:
            async with self.upstream.open(self.ask) as answer:
                if answer.streams:
                    await self._stream(answer)
                else:
                    await self._whole(answer)
        except UserError as e:
            status = {"no-key": 401, "unknown-script": 404}.get(e.cause or "", 400)
            self.live.trouble = ProviderError(e.message, cause=e.cause)
            await self._fail(status, e.message)
        except UpstreamBroke as e:
            self.live.trouble = e
            await self._fail(504 if e.cause == "timeout" else 502, e.message)
        except VoidboxError as e:
            self.live.trouble = e
            await self._fail(502, e.message)
        except TimeoutError:
            # The guest does not read; there is nobody to tell.
            self._finished = True
            log.warning("request %s: the guest read nothing for %g s", self.id, self.limits.idle_s)
        except OSError:
            self._finished = True
        except RecursionError:
            await self._fail(400, "The request is nested too deeply.")
        except Exception:
            log.exception("request %s failed", self.id)
            self.live.trouble = ProviderError("The gateway failed; its log says more.", cause="gateway")
            await self._fail(500, "The gateway failed; the host's log says more.")

    async def _stream(self, answer: Answer) -> None:
        redactor = Redactor(self.key)
        metered = StreamMeter(self.meter, self.ask.api, hide_usage=self.hide_usage)
        await self._start(answer.status, {"cache-control": "no-cache"} | dict(answer.headers))
        size = 0
        async for chunk in answer.chunks:
            self._first_byte = self._first_byte or time.monotonic() - self._begun
            size += len(chunk)
            self._bound(size)
            if passed := redactor.feed(metered.feed(chunk)):
                await self._body(passed)
        await self._body(redactor.feed(metered.end()) + redactor.end(), last=True)
        self.live.trouble = None

    async def _whole(self, answer: Answer) -> None:
        body = bytearray()
        async for chunk in answer.chunks:
            self._first_byte = self._first_byte or time.monotonic() - self._begun
            body += chunk
            self._bound(len(body))
        data = Redactor(self.key).whole(bytes(body))
        if answer.status < 400:
            self.meter.body(data)
            self.live.trouble = None
        else:
            said = error_message(data)
            self.live.trouble = ProviderError(
                f"The model server answered {answer.status} for {self.live.session.model}"
                + (f": {said}" if said else "."),
                cause=f"http-{answer.status}",
            )
            if not _is_json_object(data):
                # A proxy's HTML page, say: the agent reads only its own API's shape.
                data = error_body(self.ask.api, answer.status, said or f"HTTP {answer.status}")
        kind = {"content-type": "application/json"} | dict(answer.headers)
        if answer.status >= 400:
            kind["content-type"] = "application/json"
        await self._start(answer.status, kind | {"content-length": str(len(data))})
        await self._body(data, last=True)

    def _bound(self, size: int) -> None:
        if size > self.limits.response_bytes:
            raise LimitExceeded(
                f"The model's answer is larger than {self.limits.response_bytes} bytes.",
                limit="frame",
                value=self.limits.response_bytes,
                unit="bytes",
            )

    async def _fail(self, status: int, message: str) -> None:
        """Tell the guest, in its API's shape, also when an answer has begun. Never raises: it is the last word."""
        if self._finished:
            return
        try:
            with anyio.move_on_after(self.limits.idle_s):
                if self.status:
                    # Mid-stream: the status is spent, an event carries the error.
                    await self._body(stream_error(self.ask.api, status, message), last=True)
                else:
                    data = error_body(self.ask.api, status, message)
                    head = {"content-type": "application/json", "content-length": str(len(data))}
                    await self._start(status, head)
                    await self._body(data, last=True)
        except OSError:
            self._finished = True

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        await self._sent({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, data: bytes, *, last: bool = False) -> None:
        if last:
            self._finished = True
        await self._sent({"type": "http.response.body", "body": data, "more_body": not last})

    async def _sent(self, message: Message) -> None:
        with anyio.fail_after(self.limits.idle_s):
            await self.send(message)


def _is_json_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False

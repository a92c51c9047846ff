"""The store on a Valkey server (https://valkey.io), or another that speaks its protocol (Redis 6.2 or newer).

    PREFIX:run:ID           hash: spec, record, seq, state, …
    PREFIX:run:ID:events    stream: event n has the id n-0
    PREFIX:run:ID:keys      set: what `remember` noted of the run
    PREFIX:cache            hash: key to "run stage"
    PREFIX:runs, PREFIX:open, PREFIX:state:STATE   sorted sets by time and order of creation
    PREFIX:order            counter of runs created

Changes are Lua scripts, so each is done as a whole. An append names the number it continues from: one that
another process came before is folded again, and one whose answer was lost is recognised by its token.

Durability: an acknowledged event is with the server, so it survives the death of this process (kill -9). What
survives the server's own death is up to its settings: with ``appendonly yes`` and ``appendfsync always``
everything does; with the usual ``everysec`` the last one or two seconds may be missing, whole appends of them,
also after a kill -9, since a write waits for an fsync that is under way. A server that keeps nothing on disk, or
may evict keys, is warned of in the log.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from weakref import WeakValueDictionary

import anyio
from pydantic import ValidationError

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.spec import RunRecord, RunSpec
from voidbox_lab.spec.events import Event
from voidbox_lab.store import codec, fold
from voidbox_lab.store import valkey_scripts as scripts
from voidbox_lab.store.contract import MAX_EVENTS_PER_RUN, Entry
from voidbox_lab.store.valkey_link import Address, Link

MAX_BATCH_BYTES = 128 << 20
"""Most that one append sends; the server takes no more than 1 GiB from a client at once by default."""
SLICE = 500
"""Events or runs asked for in one call, so that no answer is long."""
CONFLICTS = 10
"""How often an append gives way to another process before it gives up."""

log = logging.getLogger(__name__)


class ValkeyStore:
    """A `Store` on a server. Open it with `ValkeyStore.open`, close it with `aclose`."""

    def __init__(self, link: Link, *, max_events: int = MAX_EVENTS_PER_RUN) -> None:
        self._link = link
        self._prefix = link.address.prefix
        self._max_events = max_events
        # (record, last seq) of runs that go on; what is stale here is found out by the server.
        self._live: dict[str, tuple[RunRecord, int]] = {}
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    @classmethod
    async def open(cls, url: str, *, max_events: int = MAX_EVENTS_PER_RUN) -> ValkeyStore:
        """The store at `url`, see `Address.parse`.

        Raises:
            UserError: the URL is none.
            ProviderError: cause ``store``: no such server, or it lets nobody in like this.
        """
        link = Link(Address.parse(url))
        self = cls(link, max_events=max_events)
        try:
            await link.call("PING")
            await self._warn()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await link.aclose()
            raise
        return self

    async def create_run(self, run: str, spec: RunSpec, *, at: float) -> RunRecord:
        """See `Store.create_run`."""
        record = fold.new_record(codec.check_run(run), spec, at=at)
        keys = [self._run(run), *map(self._key, ("order", "runs", "open")), self._state(record.state)]
        token = secrets.token_hex(8)
        values = [run, repr(float(at)), codec.spec_text(spec), codec.record_text(record), record.state, token]
        if await self._link.script(scripts.CREATE, keys, values) != b"done":
            raise codec.taken(run)
        self._live[run] = (record, 0)
        return record

    async def append(self, run: str, entries: Sequence[Entry]) -> list[Event]:
        """See `Store.append`. `LimitExceeded` also above `MAX_BATCH_BYTES` together."""
        if not entries:
            return []
        bodies = [codec.body_text(e) for e in entries]
        if sum(map(len, bodies)) > MAX_BATCH_BYTES:
            raise LimitExceeded(
                f"The events have more than {MAX_BATCH_BYTES} bytes together; append fewer at once.",
                limit="batch",
                value=MAX_BATCH_BYTES,
                unit="bytes",
            )
        async with self._locks.setdefault(run, anyio.Lock()):
            for _ in range(CONFLICTS):
                # Taken out: if this does not come to its end, what is known of the run is no longer sure.
                known = self._live.pop(run) if run in self._live else None
                before, last = known or await self._load(run)
                record, events = codec.number(before, last, entries, self._max_events)
                said = await self._send(before, record, last, events, bodies)
                if said == b"done":
                    if record.finished_at is None:
                        self._live[run] = (record, events[-1].seq)
                    return events
                if said == b"unknown":
                    raise codec.unknown(run)
        raise ProviderError(f"Another process keeps writing to the run {run}; end that one.", cause="store")

    async def get_run(self, run: str) -> RunRecord:
        """See `Store.get_run`."""
        return (await self._load(run))[0]

    async def has_ended(self, run: str) -> bool:
        """See `Store.has_ended`."""
        return await self._field(run, "ended") == b"1"

    async def list_runs(
        self,
        *,
        limit: int = 100,
        unfinished: bool = False,
        before: str | None = None,
        state: str | None = None,
        strict: bool = False,
    ) -> list[RunRecord]:
        """See `Store.list_runs`."""
        which = self._state(state) if state is not None else self._key("open" if unfinished else "runs")
        keys = [which, self._key("runs"), self._key("open"), self._run(before or "")]
        values = [str(codec.page(limit)), "01"[before is not None], "01"[unfinished]]
        runs = [run.decode() for run in await self._link.script(scripts.LIST, keys, values)]
        if runs == ["?"]:
            raise codec.unknown(before or "")
        records = []
        for run in runs:
            spec, record = await self._link.call("HMGET", self._run(run), "spec", "record")
            if spec is None:  # deleted meanwhile
                continue
            try:
                records.append(self._record(run, spec, record))
            except ProviderError as e:
                if strict:
                    raise
                log.error("left out: %s", e)
        return records

    async def read_events(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """See `Store.read_events`."""
        events: list[Event] = []
        after, last = max(0, after), max(0, after) + codec.page(limit)
        while after < last:
            count = min(SLICE, last - after)
            rows = await self._link.call("XRANGE", self._events(run), f"{after + 1}-0", "+", "COUNT", count)
            events += [self._event(run, seq, row[b"e"]) for seq, (_, row) in enumerate(rows, start=after + 1)]
            after += count
            if len(rows) < count:
                break
        if not events:
            await self._field(run, "seq")  # raises if there is no such run
        return events

    async def count_events(self, run: str) -> int:
        """See `Store.count_events`."""
        return int(await self._field(run, "seq"))

    async def delete_run(self, run: str, *, force: bool = False) -> None:
        """See `Store.delete_run`."""
        keys = [self._run(run), self._events(run), self._keys(run), *map(self._key, ("cache", "runs", "open"))]
        # Looked at first: a deletion that was sent twice, its answer lost, finds no run and is right to.
        await self._field(run, "seq")
        said = await self._link.script(scripts.DELETE, keys, [run, "01"[force], self._state("")])
        if said == b"unended":
            raise codec.unended(run)
        self._live.pop(run, None)

    async def remember(self, key: str, run: str, stage: str) -> None:
        """See `Store.remember`."""
        keys = [self._run(run), self._keys(run), self._key("cache")]
        if await self._link.script(scripts.REMEMBER, keys, [codec.check_key(key), f"{run} {stage}"]) != b"done":
            raise codec.unknown(run)

    async def recall(self, key: str) -> tuple[str, str] | None:
        """See `Store.recall`."""
        found = await self._link.call("HGET", self._key("cache"), codec.check_key(key))
        if found is None:
            return None
        run, _, stage = found.decode().partition(" ")
        return run, stage

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._link.aclose()

    # -- keys -----------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _run(self, run: str) -> str:
        return self._key(f"run:{run}")

    def _events(self, run: str) -> str:
        return f"{self._run(run)}:events"

    def _keys(self, run: str) -> str:
        return f"{self._run(run)}:keys"

    def _state(self, state: str) -> str:
        return self._key(f"state:{state}")

    # -- reading and writing --------------------------------------------------------------------

    async def _send(
        self, before: RunRecord, record: RunRecord, last: int, events: Sequence[Event], bodies: Sequence[str]
    ) -> bytes:
        run, batch = record.id, events[-1].seq
        states = self._state(before.state), self._state(record.state)
        keys = [self._run(run), self._events(run), self._key("open"), *states]
        values = [
            str(last),
            secrets.token_hex(8),
            "" if record is before else codec.record_text(record),
            record.state,
            "01"[record.finished_at is not None],
            *(codec.line(event, batch, body) for event, body in zip(events, bodies, strict=True)),
        ]
        said: bytes = await self._link.script(scripts.APPEND, keys, values)
        return said

    async def _load(self, run: str) -> tuple[RunRecord, int]:
        spec, record, seq = await self._link.call("HMGET", self._run(run), "spec", "record", "seq")
        if spec is None:
            raise codec.unknown(run)
        return self._record(run, spec, record), int(seq)

    async def _field(self, run: str, name: str) -> bytes:
        value: bytes | None = await self._link.call("HGET", self._run(run), name)
        if value is None:
            raise codec.unknown(run)
        return value

    def _record(self, run: str, spec: bytes, record: bytes) -> RunRecord:
        try:
            return codec.record_of(spec.decode(), record.decode())
        except ValueError as e:  # pydantic's and UTF-8's
            raise self._damaged(run) from e

    def _event(self, run: str, seq: int, line: bytes) -> Event:
        try:
            event, _ = codec.event_of(run, line)
        except ValidationError as e:
            raise self._damaged(run) from e
        if event.seq != seq:
            raise self._damaged(run)
        return event

    def _damaged(self, run: str) -> ProviderError:
        return codec.damaged(run, self._link.address.label)

    async def _warn(self) -> None:
        """Say so if the server may forget what it was told."""
        try:
            facts = await self._link.call("INFO")
        except ProviderError as e:
            log.info("whether the store keeps things is not known: %s", e)
            return
        label, policy = self._link.address.label, str(facts.get("maxmemory_policy", "noeviction"))
        if not facts.get("aof_enabled"):
            log.warning("%s has 'appendonly no': runs may be lost when it ends; set 'appendonly yes'", label)
        if policy.startswith("allkeys"):
            log.warning("%s has 'maxmemory-policy %s' and may drop runs; set 'noeviction'", label, policy)

"""A running box as an object: commands, files, telemetry, the end. `boxes` makes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import anyio
from pydantic import ValidationError

from voidbox_lab.box import bundles, files, process
from voidbox_lab.box.bundles import LeftOut, Packed
from voidbox_lab.box.connection import REQUEST_S, Connection
from voidbox_lab.box.denials import Denials
from voidbox_lab.box.files import FileInfo, Listing, User
from voidbox_lab.box.process import Completed, Exit, Output, Process, Pty
from voidbox_lab.box.trouble import first_error
from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.spec import BoxFacts, Policy, Rlimits
from voidbox_lab.spec.events import Denied, Telemetry
from voidbox_lab.vsock import Stream
from voidbox_lab.wire import protocol as p

START_S = 120.0
"""Seconds from asking for a command to its first instruction; a box busy with 200 others takes a while."""
MAX_OUTPUT = 16 << 20
"""Bytes of each output that `Box.run` keeps unless told otherwise."""
WORKSPACE = "/workspace"


class Box:
    """A box that is up. Every method raises `BoxLost` once it is gone, pending ones included.

    Paths are absolute paths in the guest. `user` is the identity an operation is done with: as ``agent`` nothing
    can be done that the agent could not do itself; ``root`` is for provisioning, before the agent runs.
    """

    def __init__(
        self,
        connection: Connection,
        facts: BoxFacts,
        close: Callable[[], Awaitable[None]],
        phases: Mapping[str, float] | None = None,
        dial: Callable[[int, float], Awaitable[Stream]] | None = None,
    ) -> None:
        self._connection = connection
        self._close, self._dial = close, dial
        self.facts = facts
        self.environment: Mapping[str, str] = {}
        """What every command finds in its environment, unless it is told otherwise."""
        self.phases = dict(phases or {})
        """Seconds of each phase of the boot: ``prepare``, ``start``, ``dial``, ``handshake``, ``policy`` by the
        host's clock; ``kernel`` and ``agent``, the parts of ``dial`` and ``start``, by the guest's."""

    @property
    def id(self) -> str:
        """The box's id, which is also its domain's name."""
        return self.facts.domain

    # commands

    async def start_exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = WORKSPACE,
        user: User = "agent",
        stdin: bool | bytes | None = None,
        timeout_s: float | None = None,
        limits: Rlimits | None = None,
        pty: Pty | None = None,
    ) -> Process:
        """Start a command; returns once its program runs.

        Args:
            argv: the program (a path, or a name looked up on PATH) and its arguments.
            env: added to PATH, HOME, USER, LOGNAME, LANG and `environment`; nothing else is inherited.
            stdin: True for a stream in `Process.stdin`, bytes to be sent, else nothing (``/dev/null``).
            timeout_s: after these the guest ends it and all it started; None: never.
            limits: instead of the policy's own for this command.
            pty: a terminal of this size for all three streams; what is typed goes into `Process.stdin`.

        Raises:
            UserError: no such program or directory; or policy denies it (cause ``denied``).
            LimitExceeded: too many processes, or it did not start within `START_S`.
            BoxLost: the box is gone.
        """
        if pty is not None and stdin is None:
            stdin = True
        fields: dict[str, object] = {
            "argv": list(argv),
            "env": {**self.environment, **(env or {})},
            "cwd": cwd,
            "user": user,
            "stdin": isinstance(stdin, bytes) or bool(stdin),
            "timeout_s": timeout_s or 0,
        }
        if limits is not None:
            fields["rlimits"] = limits.model_dump()
        if pty is not None:
            fields["pty"] = pty.fields()
        call = self._connection.open(p.OP_EXEC, **fields)
        if isinstance(stdin, bytes):
            self._connection.spawn(process.feed, call, stdin)
        denials = Denials()
        pid = await process.started(call, START_S, denials)
        return Process(call, tuple(argv), pid, stdin is True, pty, denials)

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = WORKSPACE,
        user: User = "agent",
        stdin: bytes | None = None,
        timeout_s: float | None = None,
        limits: Rlimits | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Completed:
        """Run a command to its end and keep what it wrote. A failing command is a result, not an error.

        Raises:
            LimitExceeded: an output is longer than `max_output` bytes (limit ``output``); the command is killed.
            VoidboxError: as `start_exec`.
        """
        running = await self.start_exec(
            argv, env=env, cwd=cwd, user=user, stdin=stdin, timeout_s=timeout_s, limits=limits
        )
        outputs: list[bytearray] = [bytearray(), bytearray()]
        ended: list[Exit] = []
        denied: list[Denied] = []
        async with running:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_collect, running.stdout, outputs[0], max_output)
                    tasks.start_soon(_collect, running.stderr, outputs[1], max_output)
                    denied += [told async for told in running.denials()]
                    ended.append(await running.wait())
            except BaseExceptionGroup as group:
                raise first_error(group) from None
        end = ended[0]
        return Completed(
            tuple(argv),
            end.code,
            end.signal,
            bytes(outputs[0]),
            bytes(outputs[1]),
            end.timed_out,
            end.oom,
            end.duration_s,
            tuple(denied),
        )

    # files

    async def put(
        self, src: Path | bytes, dst: str, *, mode: int = 0o644, user: User = "agent", parents: bool = True
    ) -> int:
        """Write a file; it appears under its name only when whole. Returns its size in bytes.

        Raises:
            UserError: `src` cannot be read, or the user may not write `dst` (cause ``denied``).
            LimitExceeded: the box's disk is full (limit ``disk``), or no progress for `files.STALL_S`.
        """
        return await files.put(self._connection, src, dst, mode=mode, user=user, parents=parents)

    async def get(self, path: str, *, user: User = "agent", max_bytes: int = files.MAX_GET) -> bytes:
        """A regular file's bytes.

        Raises:
            UserError: absent, unreadable for the user, or not a regular file.
            LimitExceeded: longer than `max_bytes` (limit ``file``).
        """
        async with aclosing(  # type: ignore[type-var]
            files.chunks(self._connection, path, user=user, max_bytes=max_bytes)
        ) as stream:
            return b"".join([chunk async for chunk in stream])

    async def get_file(
        self, path: str, dst: Path, *, user: User = "agent", max_bytes: int = files.MAX_GET_FILE
    ) -> int:
        """Receive a regular file of any size into the host file `dst`; its size in bytes. Errors as `get`."""
        return await files.get_file(self._connection, path, dst, user=user, max_bytes=max_bytes)

    async def stat(self, path: str, *, user: User = "agent") -> FileInfo:
        """Facts on a path, of a link itself. Raises UserError when absent or out of the user's sight."""
        reply = await self._connection.request(p.OP_STAT, path=path, user=user)
        return files.checked(FileInfo, {**reply, "name": ""})

    async def mkdir(self, path: str, *, mode: int = 0o755, user: User = "agent", parents: bool = True) -> None:
        """Make a directory, and those above it unless `parents` is False; then it must not exist."""
        await self._connection.request(p.OP_MKDIR, path=path, mode=mode, user=user, parents=parents)

    async def list(self, path: str, *, user: User = "agent", recursive: bool = False) -> Listing:
        """What is in a directory, sorted; at most `wire.protocol.MAX_ENTRIES`. Links are not followed."""
        reply = await self._connection.request(p.OP_LIST, path=path, user=user, recursive=recursive)
        return files.checked(Listing, reply)

    async def remove(self, path: str, *, user: User = "agent", recursive: bool = False) -> None:
        """Remove a file, a link, an empty directory, or with `recursive` a whole tree."""
        await self._connection.request(p.OP_REMOVE, within_s=120.0, path=path, user=user, recursive=recursive)

    async def unpack(
        self, path: str, chunks: Iterator[bytes], *, user: User = "agent", mount: Literal["", "ro", "rw"] = ""
    ) -> None:
        """Make the tree whose bundle `chunks` are (see `bundles`, `wire.bundle`) at `path`, in one request.

        Args:
            mount: a folder of the host: ``ro`` read-only for everybody, root included; ``rw`` the agent's.

        Raises:
            UserError: something is there already (cause ``exists``), or what taking `chunks` raises.
            LimitExceeded: the box's disk is full (limit ``disk``), or no progress for `files.STALL_S`.
        """
        await bundles.unpack(self._connection, path, bundles.together(chunks), user=user, mount=mount)

    def pack(
        self,
        path: str,
        *,
        max_files: int,
        max_bytes: int,
        left_out: LeftOut,
        user: User = "agent",
        links: bool = False,
        changed: bool = False,
    ) -> AsyncGenerator[Packed, None]:
        """The tree at `path`, entry by entry, each directory before what is in it; close it if you leave it early.

        Args:
            left_out: filled with what does not come: links, unless `links` and they stay inside; what is no file.
            changed: of a folder mounted ``rw``, files that were not touched come without their bytes.

        Raises:
            LimitExceeded: more than `max_files` entries or `max_bytes`, or no progress for `files.STALL_S`.
            ProviderError: the guest sent no such tree (cause ``protocol``).
        """
        return bundles.pack(
            self._connection,
            path,
            user=user,
            links=links,
            changed=changed,
            max_files=max_files,
            max_bytes=max_bytes,
            left_out=left_out,
        )

    # the box itself

    async def connect(self, port: int, timeout_s: float = REQUEST_S) -> Stream:
        """A stream to what listens on vsock `port` in the box; the caller closes it. Its bytes are hostile.

        The agent's own programs may listen there only where the policy opens the system calls ``af-vsock``.

        Raises:
            ProviderError: nothing listens there (cause ``refused``).
            LimitExceeded: not within `timeout_s` seconds.
        """
        if self._dial is None:
            raise ProviderError(f"The box {self.id} has no vsock to dial.", cause="refused")
        return await self._dial(port, timeout_s)

    async def ping(self, timeout_s: float = REQUEST_S) -> float:
        """Seconds one empty request takes, there and back."""
        began = anyio.current_time()
        await self._connection.request(p.OP_PING, within_s=timeout_s)
        return anyio.current_time() - began

    async def apply(self, policy: Policy) -> None:
        """Put `policy` in force for every command started from now on.

        Raises:
            UserError: it names a program, file or directory that the box lacks (cause ``not-found``).
            ProviderError: the guest kernel cannot enforce it (cause ``unsupported``).
        """
        await self._connection.request(p.OP_POLICY, **policy_fields(policy))

    async def telemetry(self, interval_s: float = 1.0) -> AsyncIterator[Telemetry]:
        """Samples of the guest's procfs, the first at once, one per `interval_s` (at least 0.2), without end.

        A consumer that lags misses samples, never delays them.
        """
        call = self._connection.open(p.OP_TELEMETRY, interval_s=max(interval_s, p.MIN_INTERVAL_S))
        try:
            while True:
                with anyio.move_on_after(interval_s + REQUEST_S) as bound:
                    event = await call.event()
                if bound.cancelled_caught:
                    raise call.late(interval_s + REQUEST_S)
                if event is None:
                    await call.result()
                    return
                try:
                    yield Telemetry.model_validate({**event, "type": "telemetry"})
                except ValidationError:
                    raise ProviderError("The guest sent a malformed telemetry sample.", cause="protocol") from None
        finally:
            call.abandon()

    async def close(self) -> None:
        """Power off, destroy, remove: nothing of the box is left. Idempotent, bounded, completes if cancelled."""
        await self._close()

    async def __aenter__(self) -> Box:
        return self

    async def __aexit__(self, *_: object) -> Literal[False]:
        await self.close()
        return False


def policy_fields(policy: Policy) -> dict[str, Any]:
    """`policy` as the guest takes it; what is about the network is the host's business."""
    fields = policy.model_dump(include={"commands", "read", "write", "syscalls", "rlimits", "caps"}, mode="json")
    return {**fields, "syscalls": sorted(policy.syscalls)}


async def _collect(output: Output, into: bytearray, limit: int) -> None:
    async for chunk in output:
        into += chunk
        if len(into) > limit:
            raise LimitExceeded(
                f"The command wrote more than {limit} bytes and was killed; read it as a stream instead.",
                limit="output",
                value=limit,
                unit="bytes",
            )

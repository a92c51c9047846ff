"""Files into and out of a box, streamed and bounded. Not for directories: those are single requests of `Box`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
from anyio.to_thread import run_sync
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from voidbox_lab.box.call import Call
from voidbox_lab.box.connection import Connection
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError
from voidbox_lab.wire import protocol as p

User = Literal["agent", "root"]

CHUNK = 1 << 20
"""Bytes per read or write of a host file: fewer trips to a worker thread."""
STALL_S = 60.0
"""Seconds without any progress after which a transfer is given up."""
MAX_GET = 64 << 20
"""Bytes `get` holds in memory unless told otherwise."""
MAX_GET_FILE = 4 << 30

T = TypeVar("T")


class FileInfo(BaseModel):
    """Facts on one path in a box. Names come from the guest: escape them before showing them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    name: str = Field("", max_length=8192)
    """Relative to the listed directory."""
    type: Literal["file", "dir", "link", "other"]
    size: int = Field(ge=0)
    mode: int = Field(ge=0, le=0o7777)
    uid: int = Field(ge=0)
    gid: int = Field(ge=0)
    mtime: float


class Listing(BaseModel):
    """A directory's entries, sorted; `truncated` if the guest's bound cut them short."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    entries: list[FileInfo] = Field(max_length=p.MAX_ENTRIES)
    truncated: bool = False


M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], fields: dict[str, Any]) -> M:
    """`fields` of a reply as `model`.

    Raises:
        ProviderError: the guest sent something else.
    """
    try:
        return model.model_validate(fields)
    except ValidationError:
        raise ProviderError(f"The guest sent a malformed {model.__name__}.", cause="protocol") from None


async def put(
    connection: Connection, source: Path | bytes, path: str, *, mode: int, user: User, parents: bool
) -> int:
    """Send `source` to `path`; returns its size. See `Box.put` for errors."""
    handle = None
    if isinstance(source, Path):
        try:
            handle = await run_sync(source.open, "rb")
        except OSError as error:
            raise UserError(f"The file {source} cannot be read: {error.strerror}.", cause="not-found") from None
    try:
        call = connection.open(p.OP_PUT, path=path, mode=mode, user=user, parents=parents)
        try:
            if handle is None:
                assert isinstance(source, bytes)
                await send(call, source)
            else:
                while data := await run_sync(handle.read, CHUNK):
                    if not await send(call, data):
                        break
            call.end(0)
            reply = await progress(call, call.result)
        finally:
            call.abandon()
    finally:
        if handle is not None:
            handle.close()
    return int(reply.get("size", 0)) if type(reply.get("size")) is int else 0


async def send(call: Call, data: bytes) -> bool:
    """Send `data` on channel 0; False if the call ended first. `LimitExceeded` without progress for `STALL_S`."""
    with memoryview(data) as view:
        for start in range(0, len(view), CHUNK):
            part = view[start : start + CHUNK]
            if not await progress(call, lambda part=part: call.send(0, part)):  # type: ignore[misc]
                return False
    return True


async def progress(call: Call, step: Callable[[], Awaitable[T]]) -> T:
    """One step of a transfer; `LimitExceeded` if it takes longer than `STALL_S`."""
    try:
        with anyio.fail_after(STALL_S):
            return await step()
    except TimeoutError:
        raise call.late(STALL_S) from None


async def chunks(
    connection: Connection, path: str, *, user: User, offset: int = 0, limit: int | None = None, max_bytes: int
) -> AsyncIterator[bytes]:
    """The bytes of `path`, as they come; an async generator: close it if you leave it early.

    Raises:
        LimitExceeded: more than `max_bytes` (limit ``file``), or no progress for `STALL_S`.
    """
    fields: dict[str, Any] = {"path": path, "user": user, "offset": offset}
    if limit is not None:
        fields["limit"] = limit
    call = connection.open(p.OP_GET, **fields)
    try:
        total = 0
        while data := await progress(call, lambda: call.receive(0, CHUNK)):
            total += len(data)
            if total > max_bytes:
                raise LimitExceeded(
                    f"The file {path!r} in the box is larger than {max_bytes} bytes.",
                    limit="file",
                    value=max_bytes,
                    unit="bytes",
                )
            yield data
        await progress(call, call.result)
    finally:
        call.abandon()


async def get_file(connection: Connection, path: str, target: Path, *, user: User, max_bytes: int) -> int:
    """Receive `path` into `target`, which appears only when whole; returns its size.

    Raises:
        UserError: `target` cannot be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        handle = await run_sync(part.open, "wb")
    except OSError as error:
        raise UserError(f"The file {target} cannot be written: {error.strerror}.", cause="io") from None
    total = 0
    try:
        pending = bytearray()
        stream = chunks(connection, path, user=user, max_bytes=max_bytes)
        try:
            async for data in stream:
                pending += data
                if len(pending) >= CHUNK:
                    total += await run_sync(handle.write, bytes(pending))
                    pending.clear()
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # it is an async generator
        total += await run_sync(handle.write, bytes(pending))
        await run_sync(handle.close)
        part.replace(target)
    except OSError as error:
        raise UserError(f"The file {target} cannot be written: {error.strerror}.", cause="io") from None
    finally:
        handle.close()
        with suppress(FileNotFoundError):
            part.unlink()
    return total

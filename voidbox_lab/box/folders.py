"""Folders of the host in a box: copied in before anything of the user's runs, and back once it has succeeded.

Copying is the one way there is. virtiofs would share the folder itself; see docs/data.md for what it wants.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import anyio
from anyio.to_thread import run_sync

from voidbox_lab.box.bundles import LeftOut, Packed
from voidbox_lab.box.files import User
from voidbox_lab.box.hostfolder import MAX_BYTES, MAX_ENTRIES, Contents, HostFolder
from voidbox_lab.box.writeback import Staging
from voidbox_lab.errors import CommandFailed, LimitExceeded, UserError
from voidbox_lab.spec import Policy
from voidbox_lab.spec.events import Mounted
from voidbox_lab.spec.hostmount import HostMount

COPY_S = 1800.0
"""Bound on copying one folder in or back, in seconds: 2 GiB at a megabyte and a bit a second."""


class Box(Protocol):
    """What is needed of a box."""

    async def apply(self, policy: Policy) -> None: ...
    async def unpack(
        self, path: str, chunks: Iterator[bytes], *, user: User = ..., mount: Literal["", "ro", "rw"] = ...
    ) -> None: ...
    def pack(
        self,
        path: str,
        *,
        max_files: int,
        max_bytes: int,
        left_out: LeftOut,
        links: bool = ...,
        changed: bool = ...,
    ) -> AsyncGenerator[Packed, None]: ...


@dataclass(frozen=True)
class Copied:
    """A folder that is in a box, and what the box was given of it."""

    mount: HostMount
    folder: HostFolder
    contents: Contents

    @property
    def event(self) -> Mounted:
        """That it is there."""
        return _event(self.mount, "in", self.contents.files, self.contents.bytes, self.contents)


def at_first(policy: Policy, mounts: Sequence[HostMount]) -> Policy:
    """What `policy` is before the folders that it may speak of are there, when nothing of the user's runs yet."""
    return policy.model_copy(update={"commands": None, "read": None, "write": None}) if mounts else policy


@asynccontextmanager
async def mounted(box: Box, mounts: Sequence[HostMount], policy: Policy) -> AsyncIterator[list[Copied]]:
    """The folders `mounts`, copied into `box`; open for the time of the context, so that what comes back goes to
    the same folders, whatever was renamed meanwhile.

    Args:
        policy: put in force once they are there, if there are any: it may name what is in them. The box was opened
            with what `at_first` makes of it.

    Raises:
        UserError: a folder cannot be read, or its place in the box is taken (cause ``mount``).
        LimitExceeded: a folder is too large (limit ``mount``), or the box's disk; or not within `COPY_S`.
    """
    copied: list[Copied] = []
    try:
        for mount in mounts:
            folder = await run_sync(HostFolder, mount.source)
            contents = Contents()
            copied.append(Copied(mount, folder, contents))
            how: Literal["ro", "rw"] = "ro" if mount.read_only else "rw"
            try:
                with anyio.fail_after(COPY_S):
                    await box.unpack(mount.path, folder.read(contents), user="root", mount=how)
            except TimeoutError:
                raise _late(mount) from None
            except UserError as e:
                if e.cause != "exists":
                    raise
                raise UserError(f"The folder {mount.source} cannot be mounted: {e.message}", cause="mount") from e
        if mounts:
            await box.apply(policy)
        yield copied
    finally:
        for one in copied:
            one.folder.close()


async def bring_back(box: Box, copied: Sequence[Copied], aside: str) -> AsyncGenerator[Mounted, None]:
    """Bring back what was changed in the folders that are writable, and say so for each.

    Args:
        aside: what the box made is put into a new directory of this name if it cannot be put where it belongs.

    Raises:
        UserError: what was changed does not go together with what is on the host now (cause ``mount-conflict``),
            or the folder cannot be written.
        CommandFailed: something in it cannot be read by the box's own user (cause ``mount``).
        LimitExceeded: it has grown too large, or not within `COPY_S`; nothing was written then.
    """
    for one in copied:
        if not one.mount.read_only:
            yield await _back(box, one, aside)


async def _back(box: Box, one: Copied, aside: str) -> Mounted:
    left_out = LeftOut()
    staging = await run_sync(Staging, one.folder, one.contents)
    try:
        try:
            with anyio.fail_after(COPY_S):
                entries = box.pack(
                    one.mount.path,
                    max_files=MAX_ENTRIES,
                    max_bytes=MAX_BYTES,
                    left_out=left_out,
                    links=True,
                    changed=True,
                )
                async with aclosing(entries):
                    async for item in entries:
                        await run_sync(staging.take, item)
        except TimeoutError:
            raise _late(one.mount) from None
        if left_out.count:
            # Not left out in silence: what did not come would be taken for removed.
            raise CommandFailed(
                f"The folder {one.mount} holds what cannot be brought back ({left_out}), so nothing was written; "
                "have it removed before the end.",
                cause="mount",
            )
        files = [found for path in staging.changed() if (found := staging.after.entries[path]).kind == "file"]
        event = _event(one.mount, "out", len(files), sum(found.size for found in files), staging.after)
        with anyio.CancelScope(shield=True):  # all of it, once begun
            await run_sync(staging.apply, aside)
        return event
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(staging.close)


def _event(
    mount: HostMount, direction: Literal["in", "out"], files: int, size: int, contents: Contents
) -> Mounted:
    return Mounted(
        mount=str(mount), how="copy", direction=direction, files=files, bytes=size, digest=contents.digest
    )


def _late(mount: HostMount) -> LimitExceeded:
    return LimitExceeded(
        f"Copying the folder {mount} took longer than {COPY_S:g} s; give the box a smaller one.",
        limit="time",
        value=COPY_S,
        unit="s",
    )

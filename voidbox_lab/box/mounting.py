"""A box's volumes in its guest: mounted before anything of the user's runs, let go before the box ends."""

from __future__ import annotations

from voidbox_lab.box.call import Call
from voidbox_lab.box.connection import REQUEST_S, Connection
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.machines import Held
from voidbox_lab.spec.volume import Mount
from voidbox_lab.wire import protocol as p

UNMOUNT_S = 20.0
"""Seconds the guest gets to write back what it has not yet: at most a part of its memory."""


class Unseen(ProviderError):
    """The guest does not find the disk of a volume."""


def mount(connection: Connection, held: Held | None) -> list[tuple[Mount, Call]]:
    """Ask for every mount; `mounted` awaits them."""
    if held is None:
        return []
    return [
        (to, connection.open(p.OP_MOUNT, serial=disk.serial, path=to.path, read_only=to.read_only))
        for to, disk in zip(held.mounts, held.disks, strict=True)
    ]


async def mounted(asked: list[tuple[Mount, Call]]) -> None:
    """Await what `mount` asked for.

    Raises:
        UserError: a volume's file system cannot be mounted (cause ``volume-damaged``), or must be mounted for
            writing first (``volume-unclean``); or its place is taken in the image (``volume-place``).
        Unseen: the guest did not find a disk.
    """
    for to, call in asked:
        try:
            await call.bounded_result(REQUEST_S)
        except (UserError, ProviderError) as error:
            refusal = _unmountable(to, error)
            if refusal is None:
                raise
            raise refusal from error
        except LimitExceeded as error:
            if error.limit != "processes":
                raise
            raise Unseen(f"The guest does not see the disk of volume {to.volume!r}: {error.message}") from error


def _unmountable(to: Mount, error: VoidboxError) -> UserError | None:
    """What the guest's refusal means to the user; None when it has nothing to do with the volume."""
    if error.cause == p.DENIED and to.read_only:
        return UserError(
            f"The volume {to.volume!r} cannot be mounted read-only, since the last box that wrote to it did not "
            f"end well; let one recover it first: `voidbox exec --volume {to.volume}:{to.path} -- true`.",
            cause="volume-unclean",
        )
    if error.cause == p.EXISTS:
        return UserError(f"The volume {to.volume!r} cannot be mounted: {error.message}", cause="volume-place")
    if error.cause == p.IO:
        return UserError(
            f"The file system of volume {to.volume!r} cannot be mounted ({error.message.rstrip('.')}); put a good "
            f"copy of its disk back, or remove it with `voidbox volume rm {to.volume}`.",
            cause="volume-damaged",
        )
    return None


async def unmount(connection: Connection) -> None:
    """Have the guest end its commands and put all on its volumes.

    Raises:
        VoidboxError: it could not, or not within `UNMOUNT_S`.
    """
    await connection.request(p.OP_UNMOUNT, within_s=UNMOUNT_S)

"""Images for boxes, made in threads apart: who waits for a layer must not keep others from theirs, nor the daemon.

For those who ask in a task. What an image is made of, and how, is `voidbox_lab.images`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.images.model import listener
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Rootfs

MAKERS = 32
"""Threads for it, none of them of anyio's own 40. Many, though all but one wait for the lock of the image cache:
what is there already needs no lock, and is not to wait behind those."""


@dataclass
class _Making:
    """One image on its way, for all who wait for it."""

    told: list[images.Report]
    done: anyio.Event = field(default_factory=anyio.Event)
    image: images.Image | None = None
    error: Exception | None = None

    def report(self, progress: images.Progress) -> None:
        for report in tuple(self.told):
            report(progress)


@dataclass
class _Makers:
    """What an event loop has of them."""

    limiter: CapacityLimiter
    making: dict[tuple[Settings, Rootfs], _Making] = field(default_factory=dict)


_makers: RunVar[_Makers] = RunVar("voidbox_lab.box.composing")


async def composed(settings: Settings, rootfs: Rootfs) -> images.Image:
    """The image that `rootfs` says, made once for all who ask meanwhile; `images.listening` tasks are told of it.

    Errors as `images.compose`'s. Cancelled, it is made on by the next who waits.
    """
    try:
        makers = _makers.get()
    except LookupError:
        makers = _Makers(CapacityLimiter(MAKERS))
        _makers.set(makers)
    key, report = (settings, rootfs), listener()
    while (making := makers.making.get(key)) is not None:
        making.told.append(report)
        try:
            await making.done.wait()
        finally:
            making.told.remove(report)
        if making.error is not None:
            raise making.error
        if making.image is not None:
            return making.image
    making = makers.making[key] = _Making([report])
    try:
        making.image = await run_sync(images.compose, settings, rootfs, making.report, limiter=makers.limiter)
    except Exception as error:
        making.error = error
        raise
    else:
        return making.image
    finally:
        del makers.making[key]
        making.done.set()

"""Which libvirt to talk to, and opening it. Not for what is done over the connection.

The choice, first match wins:

1. `Settings.libvirt_uri`: what the user said.
2. An ordinary user: ``qemu:///session``, libvirt's own per-user daemon, which destroys our domains when we
   die (AUTODESTROY). Where it cannot start (a container without its binary, a home that is read-only):
   the embedded driver, with the reason kept.
3. Root: the embedded driver, with or without a system daemon. ``qemu:///system`` runs QEMU as another
   account under AppArmor or SELinux, which cannot reach a private runtime or cache directory, and its
   dynamic ownership would hand image layers shared by several boxes to that account and back at each
   start and stop. Root who wants it says so by 1.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

from voidbox_lab.errors import ProviderError, Unavailable
from voidbox_lab.machines import embed, reaper
from voidbox_lab.machines.calls import call, detach, libvirt
from voidbox_lab.settings import Settings

OPEN_TIMEOUT_S = 60.0
"""The session daemon starts on demand."""
PROBE_TIMEOUT_S = 120.0
"""libvirt's first look at a QEMU binary starts it several times: 4-9 s, more under nested emulation."""

SESSION = "qemu:///session"


@dataclass(frozen=True)
class Choice:
    """A way to reach libvirt and why it was taken."""

    kind: Literal["given", "session", "embed"]
    uri: str
    reason: str


@dataclass(frozen=True)
class Connection:
    """An open connection and what stands behind it."""

    handle: libvirt.virConnect
    choice: Choice
    libvirt_version: str
    qemu_version: str
    emulator: Path
    """The QEMU binary libvirt uses for x86-64."""

    @property
    def embedded(self) -> bool:
        return embed.root_of(self.choice.uri) is not None


def choose(settings: Settings, *, uid: int) -> Choice:
    """The first way to try for a process of user `uid`."""
    if settings.libvirt_uri:
        return Choice("given", settings.libvirt_uri, "VOIDBOX_LIBVIRT_URI says so")
    if uid != 0:
        return Choice("session", SESSION, "an ordinary user has a libvirt session daemon")
    return _embedded(settings, "root gets the embedded driver")


def _embedded(settings: Settings, reason: str) -> Choice:
    return Choice("embed", embed.uri_of(settings.runtime / "lv"), reason)


async def connect(settings: Settings) -> Connection:
    """Open the chosen connection; the event loop must run already.

    Raises:
        Unavailable: no libvirt or no QEMU, or the embedded root is held by another process.
    """
    choice = choose(settings, uid=os.getuid())
    try:
        return await _open(settings, choice)
    except ProviderError as error:
        if choice.kind != "session" or error.cause == "no-qemu":
            raise
        return await _open(settings, _embedded(settings, f"the session daemon does not work: {error.message}"))


async def _open(settings: Settings, choice: Choice) -> Connection:
    root = embed.root_of(choice.uri)
    if root is not None:
        root = embed.claim_root(root)
        choice = replace(choice, uri=embed.uri_of(root))
        try:
            embed.prepare(root, settings.cache)
        except OSError as error:
            raise Unavailable(f"The directory {root} cannot be prepared for libvirt: {error.strerror}.") from error
        reaper.expect()
    handle = await _open_handle(choice.uri, root)
    try:
        emulator = await _emulator(handle)
        version = await call("ask QEMU for its version", PROBE_TIMEOUT_S, handle.getVersion)
        library = await call("say its version", OPEN_TIMEOUT_S, handle.getLibVersion)
        if root is None:
            # A dead or stuck daemon is noticed within 15 s instead of at the next call's bound.
            await call("set up keep-alive", OPEN_TIMEOUT_S, handle.setKeepAlive, 5, 3)
    except BaseException:
        detach(handle.close)
        raise
    if root is not None:
        # A full or read-only cache costs the next root a few seconds, nothing else.
        with suppress(OSError):
            embed.keep_capabilities(root, settings.cache)
    return Connection(handle, choice, _dotted(library), _dotted(version), emulator)


async def _open_handle(uri: str, root: Path | None) -> libvirt.virConnect:
    try:
        return await call(
            f"open {uri}", OPEN_TIMEOUT_S, libvirt.open, uri, late=lambda connection: connection.close()
        )
    except ProviderError as error:
        if error.cause != "in-use" or root is None:
            raise
        pid = embed.holder(root)
        raise Unavailable(
            f"The boxes below {root} are run by another process ({f'pid {pid}' if pid else 'pid unknown'}); "
            "use that one, stop it, or set VOIDBOX_HOME to work apart from it.",
            cause="in-use",
        ) from error


async def _emulator(handle: libvirt.virConnect) -> Path:
    text = await call("find QEMU", PROBE_TIMEOUT_S, handle.getDomainCapabilities, None, "x86_64", "q35", "qemu", 0)
    path = ET.fromstring(text).findtext("path")  # noqa: S314 - libvirt's own answer
    if not path:
        raise Unavailable("libvirt names no QEMU binary for x86-64; install qemu-system-x86.", cause="no-qemu")
    return Path(path)


def _dotted(version: int) -> str:
    """libvirt's packed version number as text (virGetVersion: major * 1,000,000 + minor * 1,000 + release)."""
    return f"{version // 1_000_000}.{version // 1_000 % 1_000}.{version % 1_000}"

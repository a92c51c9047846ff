"""The templates of this process: found, made or made again, loaded once, let go at the end."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager

import anyio
from anyio.to_thread import run_sync

from voidbox_lab.errors import LimitExceeded, ProviderError
from voidbox_lab.machines.hypervisor import Hypervisor
from voidbox_lab.machines.templates import pages
from voidbox_lab.machines.templates.make import BOOT_S, Recipe, make
from voidbox_lab.machines.templates.resident import Resident, check_room, load
from voidbox_lab.machines.templates.store import Template, TemplateStore
from voidbox_lab.settings import Settings

MAKE_S = BOOT_S + 60.0
"""Seconds to wait for another process that makes the same template."""
TURN_S = 0.1
"""Seconds between two looks whether it has."""
PATIENCE_S = 300.0
"""Seconds in which a template that could not be made is not tried again: boxes boot without."""


class Templates:
    """What clones are made from. Use it on one asyncio thread; `aclose` it before its hypervisor."""

    def __init__(self, settings: Settings, hypervisor: Hypervisor, boot_data: bytes, ready_line: str) -> None:
        """`boot_data` and `ready_line`: see `make.make`."""
        self._settings, self._hypervisor = settings, hypervisor
        self._boot_data, self._ready_line = boot_data, ready_line
        self.store = TemplateStore(settings.cache / "templates")
        self._loaded: dict[str, Resident] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._discarded: set[str] = set()
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def resident(self, recipe: Recipe) -> Resident:
        """The template of `recipe` in memory; the first time it is made, for the whole machine once.

        Raises:
            ProviderError: there is none and none can be made now; the message says why. A box can boot without.
        """
        digest = (await run_sync(recipe.key, self._hypervisor)).digest
        async with self._locks[digest]:
            found = self._loaded.get(digest)
            if found is not None:
                if await run_sync(lambda: found.intact):
                    return found
                await run_sync(self._loaded.pop(digest).close)
            if (failed := self._failed.get(digest)) and time.monotonic() - failed[0] < PATIENCE_S:
                raise ProviderError(failed[1], cause="no-template")
            try:
                self._loaded[digest] = await self._load(recipe, digest)
            except (ProviderError, LimitExceeded) as error:
                self._failed[digest] = time.monotonic(), error.message
                raise ProviderError(error.message, cause=error.cause or "no-template") from error
            return self._loaded[digest]

    async def build(self, recipe: Recipe) -> Template:
        """The template of `recipe` on disk, made if need be."""
        digest = (await run_sync(recipe.key, self._hypervisor)).digest
        return await self._found_or_made(recipe, digest)

    async def discard(self, loaded: Resident, why: str) -> None:
        """It did not restore: let it go and make another; when that fails as well, not again for a while.

        Of several boxes that it failed, the first to say so counts: the next template is not to blame.
        """
        digest = loaded.template.digest
        if self._loaded.get(digest) is not loaded:
            return
        del self._loaded[digest]
        if digest in self._discarded:
            self._failed[digest] = time.monotonic(), why
        self._discarded.add(digest)
        await run_sync(loaded.close)
        await run_sync(self.store.discard, digest)

    def worked(self, loaded: Resident) -> None:
        """A clone of it came up: whatever was wrong with an earlier one is over."""
        self._discarded.discard(loaded.template.digest)

    async def aclose(self) -> None:
        """Let go of everything; the last process to do so frees the memory."""
        loaded, self._loaded = self._loaded, {}
        with anyio.CancelScope(shield=True):
            for found in loaded.values():
                await run_sync(found.close)

    async def _load(self, recipe: Recipe, digest: str) -> Resident:
        shm = self._settings.shm
        await run_sync(check_room, shm, recipe.memory_mb << 20)
        template = await self._found_or_made(recipe, digest)
        try:
            return await run_sync(load, self.store, template, shm)
        except pages.Damaged:
            await run_sync(self.store.discard, digest)
        template = await self._found_or_made(recipe, digest)
        return await run_sync(load, self.store, template, shm)

    async def _found_or_made(self, recipe: Recipe, digest: str) -> Template:
        if template := await run_sync(self.store.find, digest):
            return template
        making = await self._turn(digest)
        try:
            if template := await run_sync(self.store.find, digest):  # another process was quicker
                return template
            template = await make(
                self._settings,
                self._hypervisor,
                self.store,
                recipe,
                boot_data=self._boot_data,
                ready_line=self._ready_line,
            )
            cap = self._settings.templates_mb << 20
            await run_sync(lambda: self.store.prune(cap, keep=template.digest))
            return template
        finally:
            making.__exit__(None, None, None)

    async def _turn(self, digest: str) -> AbstractContextManager[None]:
        """The right to make the template, entered. Asked for again and again: so the wait can be cancelled."""
        end = time.monotonic() + MAKE_S
        while True:
            making = self.store.making(digest, 0)
            try:
                await run_sync(making.__enter__)
            except LimitExceeded:
                if time.monotonic() > end:
                    raise LimitExceeded(
                        f"Another process has been making this template for {MAKE_S:g} s; stop it, or wait.",
                        limit="time",
                        value=MAKE_S,
                        unit="s",
                    ) from None
                await anyio.sleep(TURN_S)
            else:
                return making

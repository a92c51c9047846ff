"""What the daemon needs below it, as one contract. `live` is the real one; tests have an honest double."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from starlette.types import ASGIApp

from voidbox_lab.agents import Adapter
from voidbox_lab.box import Boxes
from voidbox_lab.engine import StageJob, ports
from voidbox_lab.engine.job import Session
from voidbox_lab.machines import Hypervisor
from voidbox_lab.settings import Settings
from voidbox_lab.spec import VoidBoxSpec


class Backend(ports.Boxes, Protocol):
    """Boxes (see `voidbox_lab.box.Boxes.open`), agents, the gateway and the sweep, of one daemon."""

    @property
    def gateway_app(self) -> ASGIApp:
        """Served on ``<runtime>/gateway.sock``."""
        ...

    @property
    def key_names(self) -> Sequence[str]:
        """Names of the model keys that are held."""
        ...

    def add_keys(self, keys: Mapping[str, str]) -> None:
        """Hold more model keys."""
        ...

    def check(self, box: VoidBoxSpec, *, priced: bool = False) -> None:
        """`UserError` for a stage that cannot work: unknown agent or script, no key; with `priced` (a budget in
        dollars bounds it) a model without a known price."""
        ...

    async def identity(self, box: VoidBoxSpec) -> str:
        """The digest of what `box` would run on; see `voidbox_lab.engine.cache.Identify`."""
        ...

    def adapter(self, name: str) -> Adapter:
        """The adapter of an agent CLI; `UserError` if there is none."""
        ...

    def session(self, job: StageJob) -> AbstractAsyncContextManager[Session]:
        """A gateway session for the time of the context; see `voidbox_lab.engine.stage.Session`."""
        ...

    @property
    def spares(self) -> int:
        """Boxes kept ready."""
        ...

    @property
    def spare_mb(self) -> int:
        """MiB that boxes kept ready hold; they are given up when a box that is asked for needs the room."""
        ...

    async def sweep(self) -> list[str]:
        """Remove what dead owners left; its names."""
        ...

    async def boxes(self) -> Boxes:
        """The factory itself, for who looks closer (`check`); opens libvirt if need be."""
        ...

    async def hypervisor(self) -> Hypervisor:
        """The libvirt connection below it."""
        ...


MakeBackend = Callable[[Settings], AbstractAsyncContextManager[Backend]]
"""Leaving the context closes every box and lets go of everything."""

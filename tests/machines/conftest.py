"""One hypervisor for the room's tests, as in a daemon; homes of their own where a test needs one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from voidbox_lab import images
from voidbox_lab.machines import Hypervisor
from voidbox_lab.settings import Settings


def home_settings(home: Path) -> Settings:
    """Settings with state below `home`, and the images of the real cache."""
    cache = os.environ.get("VOIDBOX_CACHE") or str(Settings.from_env().cache)
    return Settings.from_env({**os.environ, "VOIDBOX_HOME": str(home), "VOIDBOX_CACHE": cache}).prepare()


@pytest.fixture(scope="session")
def settings() -> Iterator[Settings]:
    """A home for this session."""
    with tempfile.TemporaryDirectory(prefix="vbt") as home:
        settings = home_settings(Path(home))
        yield settings
        shutil.rmtree(settings.runtime)


@pytest.fixture(scope="session")
def image(settings: Settings) -> images.Image:
    """The guest image; a machine without one skips, by name."""
    return images.resolve(settings)


@pytest.fixture(scope="session")
async def hypervisor(settings: Settings, anyio_backend: str) -> AsyncIterator[Hypervisor]:
    """libvirt, however this machine has it."""
    opened = await Hypervisor.open(settings)
    yield opened
    await opened.aclose()

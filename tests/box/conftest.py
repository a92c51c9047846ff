"""One real box for all tests that do not break it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.box import Box, Boxes
from voidbox_lab.settings import Settings


@pytest.fixture(scope="session")
async def boxes() -> AsyncIterator[Boxes]:
    """The factory, with the image built."""
    # No spares: tests compare what is there before and after.
    settings = replace(Settings.from_env(), spares=0).prepare()
    await run_sync(images.build, settings)
    async with Boxes.here(settings) as made:
        yield made


@pytest.fixture(scope="session")
async def box(boxes: Boxes) -> AsyncIterator[Box]:
    """A box that tests share: leave it as you found it."""
    async with await boxes.open(memory_mb=384) as made:
        yield made

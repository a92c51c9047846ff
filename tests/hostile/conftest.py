"""Boxes for agents that mean harm: one that the attacks share, and new ones for those that break it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from anyio.to_thread import run_sync

from voidbox_lab import images
from voidbox_lab.box import Box, Boxes
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Policy

ALLOWED = ("sh", "python3", "cat", "ls", "cp", "ln", "id", "sleep", "dd")
"""What the shared box may execute: an interpreter is among it, and `curl`, `git` and the like are not."""


@pytest.fixture(scope="module")
async def boxes() -> AsyncIterator[Boxes]:
    """The factory, with the image built."""
    settings = replace(Settings.from_env(), spares=0).prepare()
    await run_sync(images.build, settings)
    async with Boxes.here(settings) as made:
        yield made


@pytest.fixture(scope="module")
async def box(boxes: Boxes) -> AsyncIterator[Box]:
    """A box with an allowlist of commands that survives what is tried in it."""
    async with await boxes.open(memory_mb=384, policy=Policy(commands=ALLOWED)) as made:
        yield made


@pytest.fixture
async def fresh(boxes: Boxes) -> AsyncIterator[Box]:
    """A box under the default policy, for what may break it."""
    async with await boxes.open(memory_mb=256) as made:
        yield made

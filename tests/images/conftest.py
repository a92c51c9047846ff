"""Fixtures of the image room: a cache of the test's own, and small images in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images.small import small_image
from voidbox_lab.images import Image
from voidbox_lab.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Everything below the test's own directory."""
    return Settings(
        cache=tmp_path / "cache", data=tmp_path / "data", runtime=tmp_path / "run", shm=tmp_path / "shm"
    )


@pytest.fixture
def make_image() -> Callable[..., Image]:
    """``make_image(settings, label="one", name="default")`` publishes an image of a few bytes."""
    return small_image

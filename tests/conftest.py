"""Fixtures for the whole suite."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """All of voidbox-lab runs on asyncio; anyio is its interface."""
    return "asyncio"

"""Fixtures of the gateway's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gateway.upstream_server import Bench, bench


@pytest.fixture
async def lab(anyio_backend: str) -> AsyncIterator[Bench]:
    """A served gateway with a real provider behind it."""
    async with bench() as b:
        yield b

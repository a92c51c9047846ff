"""JSON of any size without holding up the event loop that also carries every other box."""

from __future__ import annotations

import json
from typing import Any

import anyio.to_thread

INLINE = 256 * 1024
"""Bytes up to which parsing costs less than handing it to a thread would gain (about 2 ms)."""


async def parse(data: bytes) -> Any:
    """`json.loads`, in a thread where it would take long. Raises what that raises."""
    if len(data) <= INLINE:
        return json.loads(data)
    return await anyio.to_thread.run_sync(json.loads, data)


async def dump(value: Any, size: int) -> bytes:
    """`json.dumps` as UTF-8, in a thread if `size` (bytes of what `value` was read from) is large."""
    if size <= INLINE:
        return json.dumps(value).encode()
    return (await anyio.to_thread.run_sync(json.dumps, value)).encode()

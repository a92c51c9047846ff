"""A process of many readers of one event stream: ``reader_process.py SOCKET CONNECTIONS``, with nothing imported
but the standard library, so that its own cost is small and is not the daemon's.

It says ``ready``, takes the path to ask for from a line of its standard input, and at the end of all streams
prints a line of JSON per reader: events, whether they were numbered 1, 2, 3, …, lags in seconds (one per read: the
age of the last event in it), and the time of its last byte.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any

_SEQ = re.compile(rb'data: \{"seq":(\d+),')
_AT = re.compile(rb'"at":([0-9.e+]+)')
READ = 1 << 18


async def read(socket: str, path: str) -> dict[str, Any]:
    """Follow one stream to its end."""
    stream, writer = await asyncio.open_unix_connection(socket, limit=READ)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: voidbox\r\nConnection: close\r\n\r\n".encode())
    head = await stream.readuntil(b"\r\n\r\n")
    events, in_order, lags, held, ended = 0, head.startswith(b"HTTP/1.1 200 "), [], b"", 0.0
    while chunk := await stream.read(READ):
        now = ended = time.time()
        whole, end, rest = (held + chunk).rpartition(b"\n\n")
        held = rest if end else whole + rest
        numbers = [int(n) for n in _SEQ.findall(whole)]
        if not numbers:
            continue
        in_order = in_order and numbers == list(range(events + 1, events + 1 + len(numbers)))
        events += len(numbers)
        lags.append(now - float(_AT.findall(whole[whole.rfind(b"data: ") :])[0]))
    writer.close()
    return {"events": events, "in_order": in_order, "lags": lags, "ended": ended}


async def main() -> None:
    """See the module."""
    socket, connections = sys.argv[1], int(sys.argv[2])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    path = (await asyncio.to_thread(sys.stdin.readline)).strip()
    for said in await asyncio.gather(*(read(socket, path) for _ in range(connections))):
        sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    asyncio.run(main())

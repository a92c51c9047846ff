"""The Python SDK: the daemon's API as `Client` (blocking) and `AsyncClient`. Not for running anything itself.

    async with AsyncClient() as client:
        record = await client.submit(spec)
        async for event in client.events(record.id): ...

Entering a client starts the daemon if none runs and hands it the model keys found in the environment.
"""

from voidbox_lab.client.aio import AsyncClient
from voidbox_lab.client.blocking import Client
from voidbox_lab.client.launch import ensure_daemon

__all__ = ["AsyncClient", "Client", "ensure_daemon"]

"""The server extension: its handlers in a Jupyter server, and the connection to the daemon closed at its end."""

from __future__ import annotations

from jupyter_server.extension.application import ExtensionApp

from voidbox_lab.jupyter.handlers import ROUTES
from voidbox_lab.jupyter.upstream import Upstream


class VoidboxExtension(ExtensionApp):
    """``voidbox_lab.jupyter`` for ``jupyter server extension``."""

    name = "voidbox_lab"
    load_other_extensions = True

    def initialize_handlers(self) -> None:
        """Called by the server before it serves."""
        self.upstream = Upstream()
        self.handlers.extend((path, handler, {"upstream": self.upstream}) for path, handler in ROUTES)

    async def stop_extension(self) -> None:
        """Called by the server when it ends."""
        await self.upstream.aclose()

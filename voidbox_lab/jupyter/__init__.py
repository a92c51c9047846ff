"""What JupyterLab needs: a server extension that lets its panel ask the daemon, and where the panel itself lies.

Not for notebooks: kernels speak to the daemon themselves.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Called by jupyter_server; what it loads is imported only there."""
    from voidbox_lab.jupyter.app import VoidboxExtension

    return [{"module": "voidbox_lab.jupyter", "app": VoidboxExtension}]

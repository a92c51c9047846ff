"""What jupyter-server-proxy is told (entry point ``jupyter_serverproxy_servers``): how to start the dashboard.

It starts it at first use, on a UNIX socket in a directory of the user's, and lets those through whom Jupyter
knows. Neither Panel nor jupyter-server-proxy is imported here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

START_S = 60.0
"""Bound on a start; it takes about two seconds, and more where the daemon has to be started."""


def setup() -> dict[str, Any]:
    """As in https://jupyter-server-proxy.readthedocs.io/en/latest/server-process.html."""
    return {
        "command": [sys.executable, "-m", "voidbox_lab.cli", "dashboard", "--unix-socket", "{unix_socket}"],
        "unix_socket": True,
        "timeout": START_S,
        "new_browser_tab": False,
        "launcher_entry": {
            "enabled": True,
            "title": "Voidbox dashboard",
            "icon_path": str(Path(__file__).with_name("static") / "icon.svg"),
            "category": "Other",
        },
    }

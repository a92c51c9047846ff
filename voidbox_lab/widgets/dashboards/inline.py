"""The dashboard in a notebook: the served page in a frame, so that the notebook's file keeps one line of it.

Panel can also draw through the kernel. That was measured: 7.4 MB of JavaScript in the file of each such notebook,
style sheets from a server of Panel's makers, and a page that stands still while a cell runs.
"""

from __future__ import annotations

import os
import queue
import threading
from html import escape
from typing import Literal
from urllib.parse import quote

from voidbox_lab.errors import ProviderError
from voidbox_lab.settings import Settings
from voidbox_lab.widgets.dashboards.serve import serve

Theme = Literal["light", "dark"]
HEIGHT = 860
START_S = 90.0
"""Bound on a start: Panel's import takes a second, and the daemon may have to be started."""
HUB = "JUPYTERHUB_SERVICE_PREFIX"
"""Set by JupyterHub: the browser is elsewhere, and jupyter-server-proxy has the dashboard below this path."""

_lock = threading.Lock()
_serving: dict[str, str] = {}
"""URL of this kernel's server, by socket of the daemon it reads."""


class Frame:
    """A page that a notebook shows."""

    def __init__(self, url: str, height: int) -> None:
        self.url = url
        self.height = height

    def __repr__(self) -> str:
        return f"dashboard at {self.url}"

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{escape(self.url)}" title="voidbox dashboard" width="100%" height="{self.height}" '
            'referrerpolicy="no-referrer" style="border:0;border-radius:6px"></iframe>'
        )


def shown(theme: Theme | None = None, height: int = HEIGHT) -> Frame:
    """The page of this kernel's server, which is started at first use and lives as long as the kernel."""
    query = f"?theme={quote(theme)}" if theme else ""
    if hub := os.environ.get(HUB):
        return Frame(f"{hub}voidbox-dashboard/{query}", height)
    return Frame(_url(Settings.from_env()) + query, height)


def _url(settings: Settings) -> str:
    where = str(settings.daemon or settings.socket)
    with _lock:
        if where not in _serving:
            answers: queue.Queue[str | BaseException] = queue.Queue()

            def work() -> None:
                def ready(url: str) -> None:
                    _serving[where] = url
                    answers.put(url)

                try:
                    serve(settings.prepare(), ready=ready)
                except BaseException as e:
                    answers.put(e)
                finally:
                    _serving.pop(where, None)

            threading.Thread(target=work, name="voidbox-dashboard", daemon=True).start()
            try:
                answer = answers.get(timeout=START_S)
            except queue.Empty:
                raise ProviderError(
                    f"The dashboard did not start within {START_S:.0f} s; try again on a less busy machine.",
                    cause="dashboard",
                ) from None
            if isinstance(answer, BaseException):
                raise answer
            return answer
        return _serving[where]

"""JupyterLab or Notebook 7 on loopback, a headless browser; a missing one is named, never passed over silently."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.ports import free_port
from voidbox_lab import images
from voidbox_lab.client import Client
from voidbox_lab.client.keys import is_key
from voidbox_lab.settings import Settings

ROOT = Path(__file__).parents[2]
CONNECTED = (
    "() => window.jupyterapp.shell.currentWidget?.context?.sessionContext?.session?.kernel?.connectionStatus"
    " === 'connected'"
)
"""Whether the notebook in front has its kernel: the indicator says "idle" before."""


@dataclass(frozen=True)
class Front:
    """An application that shows notebooks: how it is started, and where its notebooks are."""

    module: str
    app: str
    path: str


JUPYTERLAB = Front("jupyterlab", "LabApp", "lab/tree")
NOTEBOOK = Front("notebook", "JupyterNotebookApp", "notebooks")


@dataclass(frozen=True)
class Lab:
    """A running `Front`."""

    front: Front
    url: str
    token: str
    directory: Path
    env: dict[str, str]

    def write(self, name: str, cells: list[str]) -> str:
        """Put a notebook of these code cells into the server's directory; returns the page's address."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.directory / name)
        return self.page(name)

    def saved(self, name: str) -> dict[str, Any]:
        """A notebook as it is on disk."""
        content: dict[str, Any] = json.loads((self.directory / name).read_text())
        return content

    def page(self, name: str) -> str:
        """The address of a notebook."""
        return f"{self.url}/{self.front.path}/{name}?reset&token={self.token}"


def chromium() -> str:
    """Path of the browser; skips the test, with the package to install, if there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("no chromium on this machine; install the package 'chromium'")


@pytest.fixture(scope="module")
def front() -> Front:
    """What notebooks are shown in; modules override it."""
    return JUPYTERLAB


@pytest.fixture(scope="module")
def lab_env() -> dict[str, str]:
    """More environment for JupyterLab and its kernels; modules override it."""
    return {}


@pytest.fixture(scope="module")
def boxes_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """For real boxes: a home of its own with the shared image cache, and no model but the scripted ones."""
    home = tmp_path_factory.mktemp("home")
    env = {"VOIDBOX_HOME": str(home), "VOIDBOX_CACHE": str(Settings.from_env().cache), "OLLAMA_MODEL": ""}
    env |= {name: "" for name in os.environ if is_key(name)}
    settings = Settings.from_env(os.environ | env)
    images.resolve(settings)  # Unavailable here is a skip that says what to build
    yield env
    if settings.socket.exists():
        with Client(settings, start=False) as client:
            client.shutdown()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, front: Front, lab_env: dict[str, str]) -> Iterator[Lab]:
    """A `front` with directories of its own, ended with all its kernels."""
    base = tmp_path_factory.mktemp("lab")
    directory = base / "notebooks"
    directory.mkdir()
    port, token = free_port(), secrets.token_hex(16)
    env = os.environ | {
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
        "JUPYTER_TOKEN": token,  # not on the command line, where others could read it
        "IPYTHONDIR": str(base / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "widgets")]),
        **lab_env,
    }
    settings = base / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [
        sys.executable, "-m", front.module, "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        f"--ServerApp.root_dir={directory}", "--ServerApp.port_retries=0", "--allow-root",
        f"--{front.app}.expose_app_in_browser=True",
    ]  # fmt: skip
    with (base / "lab.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=directory)
        try:
            url = f"http://127.0.0.1:{port}"
            await_server(url, token, process, base / "lab.log")
            yield Lab(front, url, token, directory, env)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def await_server(url: str, token: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 90) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"JupyterLab ended at once:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            request = urllib.request.Request(f"{url}/api/status", headers={"Authorization": f"token {token}"})
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not answer within {timeout_s} s:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, shots: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of its own, wide enough for a notebook."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, device_scale_factor=1.5)
    page = context.new_page()
    page.set_default_timeout(25_000)
    yield page
    shots(page, f"last-{request.node.name}")
    context.close()


@pytest.fixture
def shots() -> Any:
    """Saves screenshots for the eye where `VOIDBOX_SCREENSHOTS` names a directory; asserts nothing."""
    directory = os.environ.get("VOIDBOX_SCREENSHOTS")

    def shoot(page: Any, name: str) -> None:
        if directory:
            Path(directory).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(Path(directory) / f"{name}.png"))

    return shoot


@pytest.fixture
def open_and_run() -> Callable[[Any, str], None]:
    """Opens a notebook and executes all of its cells."""

    def run(page: Any, url: str) -> None:
        page.goto(url)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        page.wait_for_function(CONNECTED, timeout=60_000)
        page.locator(".jp-Notebook .jp-Cell").first.click()
        begun = page.locator(".jp-InputPrompt").filter(has_text=re.compile(r"\[(\*|\d+)\]"))
        asks = page.locator("dialog.jp-Dialog .jp-mod-accept")
        for _ in range(5):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            # JupyterLab shows "idle" a moment before it takes requests, and then drops them in silence.
            deadline = time.monotonic() + 6
            while time.monotonic() < deadline:
                if begun.count():
                    return
                if asks.count():
                    # Asked too early, it has no kernel yet and wants one chosen: the notebook's own is preset.
                    asks.first.click()
                time.sleep(0.1)
        pytest.fail("JupyterLab executed nothing, asked five times")

    return run

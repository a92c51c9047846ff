"""A Jupyter server with our extension, in a process of its own, before the daemon in this one."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest

from tests.daemon.conftest import far, house
from tests.ports import free_port
from voidbox_lab.settings import Settings

__all__ = ["clean", "far", "house", "jupyter", "settings"]
ROOT = Path(__file__).parents[2]
START_S = 180
"""A loaded machine imports for a long time."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One home for all tests of a module, for the one server that they share; what is in it goes after each."""
    home = tmp_path_factory.mktemp("home")
    made = Settings.from_env(dict(os.environ) | {"VOIDBOX_HOME": str(home)}).prepare()
    yield made
    shutil.rmtree(made.runtime)


@pytest.fixture(autouse=True)
def clean(settings: Settings) -> Iterator[None]:
    """Torn down after the test's daemon."""
    yield
    shutil.rmtree(settings.data)
    settings.prepare()


@pytest.fixture(scope="module")
async def jupyter(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """Its `url`, `token`, and `http`, a client with the token."""
    tmp_path = tmp_path_factory.mktemp("jupyter")
    token = secrets.token_hex(16)
    port = free_port()
    env = os.environ | {
        "VOIDBOX_HOME": str(settings.data.parent),
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "PYTHONPATH": str(ROOT),
    }
    config = tmp_path / "config" / "jupyter_server_config.json"
    config.parent.mkdir()
    # As the wheel puts it below etc/jupyter.
    config.write_text((ROOT / "labextension" / "jupyter_server_config.json").read_text())
    command = [
        sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path}",
        "--ServerApp.base_url=/base/",
    ]  # fmt: skip
    log = tmp_path / "jupyter.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=tmp_path)
    url = f"http://127.0.0.1:{port}/base/"
    try:
        async with httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"token {token}"}, trust_env=False, timeout=30
        ) as http:
            with anyio.fail_after(START_S):
                while True:
                    assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                    try:
                        if (await http.get("api/status")).is_success:
                            break
                    except httpx.TransportError:
                        pass
                    await anyio.sleep(0.1)
            yield SimpleNamespace(url=url, token=token, http=http, log=log)
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def problem(response: httpx.Response) -> Any:
    """The error of a response that is no success."""
    assert response.headers["content-type"].startswith("application/problem+json"), response.text
    return json.loads(response.content)["error"]

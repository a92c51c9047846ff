"""The dashboard as a process of its own, over a daemon whose store has runs."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import Place, home  # noqa: F401 - a fixture
from tests.widgets.dashboards.samples import fill, month

RUNS = 40


@pytest.fixture(scope="module")
def stored(home: Place) -> Place:  # noqa: F811 - the fixture
    """A home whose daemon runs and knows `RUNS` runs."""
    fill(home.settings, month(RUNS, time.time()))
    with home.client() as client:
        assert client.health().runs == 0
    return home


@pytest.fixture(scope="module")
def served(stored: Place) -> Iterator[str]:
    """The URL of the dashboard."""
    process = stored.start("dashboard", "--no-browser", "--json")
    try:
        yield url_of(process)
    finally:
        ended(process)


def url_of(process: subprocess.Popen[str]) -> str:
    """What it says once it serves."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _, err = process.communicate(timeout=20)
        pytest.fail(f"it ended: {err[-3000:]}")
    said: dict[str, Any] = json.loads(line)
    return str(said["url"])


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error of one that was interrupted."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate(timeout=10)
        raise
    return process.returncode, err

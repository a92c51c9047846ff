"""A real IPython shell with the extension loaded, and the stand-in client in the place of the daemon's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from voidbox_lab import load_ipython_extension, unload_ipython_extension

WIDGET_TESTS = Path(__file__).parents[1] / "widgets"


@pytest.fixture(scope="session")
def replay() -> ModuleType:
    """The module `replay.py` of the widget tests; kernels import the same file."""
    if "replay" not in sys.modules:
        spec = importlib.util.spec_from_file_location("replay", WIDGET_TESTS / "replay.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["replay"] = module
        spec.loader.exec_module(module)
    return sys.modules["replay"]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A shell of its own, with the extension loaded."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(colors="nocolor")
    shell.history_manager.enabled = False
    load_ipython_extension(shell)
    yield shell
    unload_ipython_extension(shell)
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


@pytest.fixture
def replayed(replay: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stand-in client in place; no runs yet."""
    from voidbox_lab.magics import commands

    monkeypatch.setattr(commands, "AsyncClient", replay.ReplayClient)
    replay.RUNS.clear()
    return replay

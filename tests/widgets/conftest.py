"""Loads the stand-in client by path: kernels that tests start import the same file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def replay() -> ModuleType:
    """The module `replay.py`."""
    if "replay" not in sys.modules:
        spec = importlib.util.spec_from_file_location("replay", Path(__file__).with_name("replay.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["replay"] = module
        spec.loader.exec_module(module)
    return sys.modules["replay"]

"""Puts the guest's packages on the path, as the image does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from voidbox_lab.resources import data_dir


@pytest.fixture(autouse=True)
def _guest_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(data_dir("guest")))
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "lab_agent"]:
        del sys.modules[name]

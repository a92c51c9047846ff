"""Finds the data directories that ship beside the code: ``guest/`` and ``libvirt-templates/``."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_dir(name: str) -> Path:
    """The directory `name` (``guest`` or ``libvirt-templates``), from the wheel or from a checkout.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"The data directory {name!r} is missing; reinstall voidbox-lab.")

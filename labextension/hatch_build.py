"""Puts the built JupyterLab extension into the wheel, where `pip install` brings it to the right place.

Not into an editable one: `scripts/setup` links the extension's directory there, so that a new build is seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "share/jupyter/labextensions/voidbox-lab"
"""Where JupyterLab looks, below the environment's prefix."""


class LabextensionHook(BuildHookInterface[Any]):
    """Builds for wheels and sdists; an sdist holds what was built, so that nothing has to be built from it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        if version == "editable":
            return
        # jlpm is a script of the environment that builds, whose scripts need not be on PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        subprocess.run([Path(self.root) / "scripts" / "labextension"], check=True, env=os.environ | {"PATH": path})
        if self.target_name == "wheel":
            build_data["shared_data"][str(Path(self.root) / "labextension" / "build")] = PLACE

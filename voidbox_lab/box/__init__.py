"""Boxes: a running micro-VM as an object with commands, files and telemetry.

Not for machines (`voidbox_lab.machines`), nor for what runs in a box (`voidbox_lab.agents`).
"""

from __future__ import annotations

from voidbox_lab.box.box import Box
from voidbox_lab.box.boxes import Boxes
from voidbox_lab.box.connection import Connection
from voidbox_lab.box.files import FileInfo, Listing
from voidbox_lab.box.process import Completed, Exit, Input, Output, Process, Pty

__all__ = [
    "Box",
    "Boxes",
    "Completed",
    "Connection",
    "Exit",
    "FileInfo",
    "Input",
    "Listing",
    "Output",
    "Process",
    "Pty",
]

"""Who a box belongs to, and whether that process still lives. Not for what a box is or does.

Every domain carries its `Owner` in libvirt's metadata and every box directory holds it as
``owner.json``, so that whoever comes next can tell a box in use from one left behind by a crash. A
process is named by pid, start time and boot id together: a pid alone is reused, and a start time
(proc(5), ``/proc/PID/stat`` field 22, in clock ticks since boot) repeats after a reboot.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal

from voidbox_lab.settings import Settings

NAMESPACE = "https://voidbox-lab.org/xmlns/domain/1"
"""XML namespace of the ``owner`` element in a domain's metadata."""

BOX_NAME = re.compile(r"vb-[0-9a-f]{10}")
"""The shape of a box id, which is also its domain's name and its directories' name."""

Liveness = Literal["alive", "dead", "other-boot", "other-namespace"]


@dataclass(frozen=True)
class Owner:
    """The process a box belongs to.

    `pid` is a number in the pid namespace `pid_namespace` (inode of ``/proc/self/ns/pid``); two
    containers that share a cache directory must not judge each other's pids.
    """

    pid: int
    start_time: int
    boot_id: str
    pid_namespace: int
    uid: int
    home: str
    """`Settings.runtime` of the owner: where the box's directory is, under ``b/``."""
    box: str

    def __post_init__(self) -> None:
        if not BOX_NAME.fullmatch(self.box):
            raise ValueError(f"{self.box!r} is not a box id")

    @classmethod
    def current(cls, settings: Settings, box: str) -> Owner:
        """This process as the owner of `box`."""
        start_time = process_start_time(os.getpid())
        if start_time is None:
            raise RuntimeError("/proc does not show this process; mount /proc to run boxes.")
        return cls(
            pid=os.getpid(),
            start_time=start_time,
            boot_id=boot_id(),
            pid_namespace=pid_namespace(),
            uid=os.getuid(),
            home=str(settings.runtime),
            box=box,
        )

    def liveness(self) -> Liveness:
        """Whether the owner runs. The ``other-…`` answers mean: from here it cannot be seen at all."""
        if self.boot_id != boot_id():
            return "other-boot"
        if self.pid_namespace != pid_namespace():
            return "other-namespace"
        return "alive" if process_start_time(self.pid) == self.start_time else "dead"

    def attributes(self) -> dict[str, str]:
        """The owner as XML attributes."""
        return {name.replace("_", "-"): str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_mapping(cls, data: object) -> Owner:
        """The owner written by `attributes` (any key style, numbers as text or not).

        Raises:
            ValueError: a key is missing or malformed.
        """
        if not isinstance(data, dict):
            raise ValueError("an owner is a mapping")
        values: dict[str, int | str] = {}
        for field in fields(cls):
            raw = data.get(field.name, data.get(field.name.replace("_", "-")))
            if not isinstance(raw, int | str):
                raise ValueError(f"owner has no {field.name}")
            values[field.name] = int(raw) if field.type == "int" else str(raw)
        return cls(**values)  # type: ignore[arg-type]  # each value was converted to its field's type above

    @classmethod
    def from_xml(cls, text: str) -> Owner:
        """The owner from the metadata element libvirt hands out.

        Raises:
            ValueError: it is not one.
        """
        try:
            root = ET.fromstring(text)  # noqa: S314 - from libvirt, which parsed it first; no DTD survives that
        except ET.ParseError as error:
            raise ValueError(f"owner metadata is not XML: {error}") from None
        return cls.from_mapping(dict(root.attrib))


def process_start_time(pid: int) -> int | None:
    """Start time of process `pid` in clock ticks since boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name may hold spaces and parentheses; the fields proper start after the last one.
    values = stat.rpartition(")")[2].split()
    return None if values[0] in {"Z", "X"} else int(values[19])


@cache
def boot_id() -> str:
    """This boot of this kernel (random(4), ``/proc/sys/kernel/random/boot_id``)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> int:
    """Inode of this process's pid namespace (namespaces(7))."""
    return Path("/proc/self/ns/pid").stat().st_ino

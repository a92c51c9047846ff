"""Renders a `MachineSpec` as libvirt domain XML from ``libvirt-templates/``. Talks to nobody."""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree as ET

import jinja2
from markupsafe import Markup

from voidbox_lab.errors import UserError
from voidbox_lab.images.model import TCG_CPU
from voidbox_lab.machines.owner import NAMESPACE
from voidbox_lab.machines.spec import MAX_VOLUMES, Disk, MachineSpec
from voidbox_lab.resources import data_dir

# XML 1.0 section 2.2 allows tab, newline and return, but attribute values would turn them into spaces
# (section 3.3.3): a path would silently become another one.
_UNFIT = re.compile("[^\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

FIRST_DISK_SLOT, VOLUME_SLOT = 0x03, 0x19
"""On the root bus."""
FIRST_VOLUME_BUS = 2
"""The bus behind the first root port for volumes, of a machine that is saved; libvirt counts as the guest does."""


def console_socket(spec: MachineSpec) -> Path:
    """The UNIX socket, beside the console log, that QEMU's serial port dials."""
    return spec.console_log.with_suffix(".sock")


def render(spec: MachineSpec) -> str:
    """Domain XML (libvirt's formatdomain) for `spec`.

    Raises:
        UserError: a path or argument holds a character XML cannot carry unchanged.
    """
    paths = [spec.kernel, spec.initrd, spec.console_log, *(disk.path for disk in (*spec.disks, *spec.volumes))]
    if spec.boot_file:
        paths.append(spec.boot_file)
    vsock = None if spec.memory else spec.vsock
    vhost_user_socket = vsock.socket if vsock and vsock.kind == "user" else None
    if vsock and vsock.kind == "user" and vhost_user_socket is None:
        raise ValueError("a user-space vsock device needs its socket")
    if vhost_user_socket:
        paths.append(vhost_user_socket)
    if spec.memory:
        paths.append(spec.memory.path)
    _check_text(*map(str, paths), spec.owner.home, spec.cmdline)
    cpu_model, *cpu_features = TCG_CPU.split(",")
    places = [_address(slot=FIRST_DISK_SLOT + n) for n in range(len(spec.disks))]
    # All in one slot; the first tells the guest to look for more.
    places += [_address(slot=VOLUME_SLOT, function=n, more=n == 0) for n in range(len(spec.volumes))]
    disks = (*spec.disks, *spec.volumes)
    return _template("box.xml.j2").render(
        spec=spec,
        disks=list(zip(disks, _targets(len(disks)), places, strict=True)),
        max_volumes=MAX_VOLUMES,
        namespace=NAMESPACE,
        # The last one counts (kernel-parameters.txt), so ours does.
        cmdline=f"{spec.cmdline} panic=-1".strip(),
        cpu_model=cpu_model,
        cpu_features=[feature.removeprefix("+") for feature in cpu_features],
        console_socket=console_socket(spec),
        vhost_user_socket=_option(vhost_user_socket) if vhost_user_socket else None,
        memory_file=_option(spec.memory.path) if spec.memory else None,
        kernel_vsock=vsock is not None and vsock.kind == "kernel",
    )


def render_volume(spec: MachineSpec, disk: Disk, index: int) -> str:
    """XML of `disk` as the volume number `index` of a machine of `spec` that runs and has `MachineSpec.memory`.

    Raises:
        UserError: its path holds a character XML cannot carry unchanged.
    """
    _check_text(str(disk.path))
    target = _targets(len(spec.disks) + MAX_VOLUMES)[len(spec.disks) + index]
    address = _address(bus=FIRST_VOLUME_BUS + index)
    return _template("disk.xml.j2").render(disk=disk, target=target, address=address)


def _targets(count: int) -> list[str]:
    """Names for libvirt, in order; the guest gives its own."""
    return [f"vd{chr(ord('a') + n)}" if n < 26 else f"vda{chr(ord('a') + n - 26)}" for n in range(count)]


def _address(*, bus: int = 0, slot: int = 0, function: int = 0, more: bool = False) -> Markup:
    text = f'domain="0x0000" bus="0x{bus:02x}" slot="0x{slot:02x}" function="0x{function:x}"'
    return Markup(text + (' multifunction="on"' if more else ""))  # noqa: S704 - numbers only


def _check_text(*texts: str) -> None:
    for text in texts:
        if _UNFIT.search(text):
            raise UserError(
                f"{text!r} holds a control or undecodable character; use another path for the box's files."
            )


def _option(path: Path) -> str:
    """`path` within an option of QEMU's command line: a comma separates those, a doubled one is a comma."""
    return str(path).replace(",", ",,")


def source_digest() -> str:
    """SHA-256, in hexadecimal, of the templates that this process renders."""
    return sha256("\0".join(_sources().values()).encode()).hexdigest()


@cache
def _sources() -> dict[str, str]:
    # Once: what is rendered and what a saved machine is known by must be the same, whatever becomes of the files.
    directory = data_dir("libvirt-templates")
    return {name: (directory / name).read_text(encoding="utf-8") for name in ("box.xml.j2", "disk.xml.j2")}


@cache
def _template(name: str) -> jinja2.Template:
    loader = jinja2.DictLoader(_sources())
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, loader=loader).get_template(name)


def vsock_cid(xml: str) -> int | None:
    """The vsock CID in a live domain's XML; None when there is none."""
    element = ET.fromstring(xml).find("devices/vsock/cid")  # noqa: S314 - libvirt's own output
    address = None if element is None else element.get("address")
    return None if address is None else int(address)

"""Renders a `MachineSpec` as libvirt domain XML from ``libvirt-templates/box.xml.j2``. Talks to nobody."""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree as ET

import jinja2

from voidbox_lab.errors import UserError
from voidbox_lab.images.model import TCG_CPU
from voidbox_lab.machines.owner import NAMESPACE
from voidbox_lab.machines.spec import MachineSpec
from voidbox_lab.resources import data_dir

# XML 1.0 section 2.2 allows tab, newline and return, but attribute values would turn them into spaces
# (section 3.3.3): a path would silently become another one.
_UNFIT = re.compile("[^\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def console_socket(spec: MachineSpec) -> Path:
    """The UNIX socket, beside the console log, that QEMU's serial port dials."""
    return spec.console_log.with_suffix(".sock")


def render(spec: MachineSpec) -> str:
    """Domain XML (libvirt's formatdomain) for `spec`.

    Raises:
        UserError: a path or argument holds a character XML cannot carry unchanged.
    """
    paths = [spec.kernel, spec.initrd, spec.console_log, *(disk.path for disk in spec.disks)]
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
    for text in [*map(str, paths), spec.owner.home, spec.cmdline]:
        if _UNFIT.search(text):
            raise UserError(
                f"{text!r} holds a control or undecodable character; use another path for the box's files."
            )
    cpu_model, *cpu_features = TCG_CPU.split(",")
    return _template().render(
        spec=spec,
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


def _option(path: Path) -> str:
    """`path` within an option of QEMU's command line: a comma separates those, a doubled one is a comma."""
    return str(path).replace(",", ",,")


def source_digest() -> str:
    """SHA-256, in hexadecimal, of the template that `render` uses in this process."""
    return sha256(_source().encode()).hexdigest()


@cache
def _source() -> str:
    # Once: what is rendered and what a saved machine is known by must be the same, whatever becomes of the file.
    return (data_dir("libvirt-templates") / "box.xml.j2").read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True).from_string(_source())


def vsock_cid(xml: str) -> int | None:
    """The vsock CID in a live domain's XML; None when there is none."""
    element = ET.fromstring(xml).find("devices/vsock/cid")  # noqa: S314 - libvirt's own output
    address = None if element is None else element.get("address")
    return None if address is None else int(address)

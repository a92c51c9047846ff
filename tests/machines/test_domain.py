"""Domain XML, judged by an XML parser: structure, escaping, and what must be absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast
from xml.etree import ElementTree as ET

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.machines import BoxDirs, Recipe
from voidbox_lab.machines.domain import render, render_volume, vsock_cid
from voidbox_lab.machines.owner import NAMESPACE, Owner
from voidbox_lab.machines.spec import MAX_DISKS, MAX_VOLUMES, Accelerator, Disk, MachineSpec, MemoryFile
from voidbox_lab.vsock import VsockDevice

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
BOX = "vb-0123456789"
HOSTILE = "/x/a&b <c> \"d\" 'e' é,f=g/{{ 7*7 }}"


def make(**changes: Any) -> MachineSpec:
    """A spec of ordinary values."""
    owner = Owner(pid=1, start_time=2, boot_id="b", pid_namespace=3, uid=4, home="/run/vb", box=BOX)
    values: dict[str, Any] = {
        "name": BOX,
        "memory_mb": 512,
        "vcpus": 2,
        "kernel": Path("/i/vmlinux"),
        "initrd": Path("/i/initrd"),
        "cmdline": "console=ttyS0 quiet",
        "disks": (Disk(Path("/i/root"), True, "root"), Disk(Path("/i/scratch"), False)),
        "vsock": None,
        "boot_file": Path("/run/vb/boot"),
        "console_log": Path("/run/vb/console.log"),
        "accelerator": "tcg",
        "owner": owner,
    }
    return MachineSpec(**(values | changes))


def tree(spec: MachineSpec) -> ET.Element:
    """The rendered domain, parsed."""
    return ET.fromstring(render(spec))


def find(root: ET.Element, path: str) -> ET.Element:
    """The one element at `path`."""
    (element,) = root.findall(path)
    return element


def test_what_a_box_is_made_of() -> None:
    """Name, memory, vCPUs, kernel, boot file, owner."""
    spec = make()
    root = tree(spec)
    assert root.get("type") == "qemu"
    assert root.findtext("name") == BOX
    assert (find(root, "memory").text, find(root, "memory").get("unit")) == ("512", "MiB")
    assert root.findtext("vcpu") == "2"
    assert root.findtext("os/kernel") == "/i/vmlinux"
    assert root.findtext("os/initrd") == "/i/initrd"
    assert find(root, "sysinfo/entry").attrib == {"name": "opt/voidbox/boot", "file": "/run/vb/boot"}
    owner = ET.tostring(find(root, f"metadata/{{{NAMESPACE}}}owner"), encoding="unicode")
    assert Owner.from_xml(owner) == spec.owner
    assert {root.findtext(f"on_{what}") for what in ("poweroff", "reboot", "crash")} == {"destroy"}


def test_what_a_box_has_not() -> None:
    """No way out and nothing to look at: the attack surface is what is listed here and no more."""
    devices = find(tree(make()), "devices")
    kinds = sorted(element.tag for element in devices if element.tag != "controller")
    assert kinds == ["disk", "disk", "memballoon", "serial"]
    assert find(devices, "memballoon").get("model") == "none"
    assert find(devices, "controller[@type='usb']").get("model") == "none"
    assert find(tree(make()), "clock/timer[@name='hpet']").get("present") == "no"


def test_a_panic_always_ends_the_machine() -> None:
    """The last `panic=` on the command line is ours."""
    words = str(tree(make(cmdline="quiet panic=0")).findtext("os/cmdline")).split()
    assert [word for word in words if word.startswith("panic=")][-1] == "panic=-1"


def test_disks_in_order() -> None:
    """Order gives the guest's names; read-only ones keep their cache, the scratch disk never syncs."""
    root, scratch = tree(make()).findall("devices/disk")
    assert find(root, "target").get("dev") == "vda"
    assert find(scratch, "target").get("dev") == "vdb"
    assert root.find("readonly") is not None
    assert scratch.find("readonly") is None
    assert root.findtext("serial") == "root"
    assert scratch.find("serial") is None
    assert find(root, "driver").get("cache") == "writeback"
    assert find(scratch, "driver").get("cache") == "unsafe"
    # A full host disk is an I/O error in the guest, not a guest that silently stands still.
    assert {find(d, "driver").get("error_policy") for d in (root, scratch)} == {"report"}


def test_a_full_house_has_no_address_twice() -> None:
    """Every PCI device has a place of its own, with the greatest number of disks, volumes and a vsock device."""
    root = tree(
        make(
            disks=tuple(Disk(Path(f"/d/{n}"), True) for n in range(MAX_DISKS)),
            volumes=tuple(Disk(Path(f"/v/{n}"), False, lasting=True) for n in range(MAX_VOLUMES)),
            vsock=VsockDevice("kernel", None, None),
        )
    )
    places = [
        (a.get("bus"), int(str(a.get("slot")), 16), int(str(a.get("function")), 16))
        for a in root.iter("address")
        if a.get("type") == "pci"
    ]
    assert len(places) == MAX_DISKS + MAX_VOLUMES + 1
    assert len(set(places)) == len(places)
    assert all(0 < slot < 0x1F for _, slot, _ in places), "0x00 is the host bridge, 0x1f the south bridge"
    targets = [str(t.get("dev")) for t in root.iter("target") if t.get("dev")]
    assert len(targets) == len(set(targets)) == MAX_DISKS + MAX_VOLUMES
    # Functions beyond the first are found only where the first says that there are more.
    many = {a.get("slot") for a in root.iter("address") if a.get("multifunction") == "on"}
    assert many == {a.get("slot") for a in root.iter("address") if a.get("function") not in {None, "0x0"}}


def test_processors() -> None:
    """Emulation has SSE4.2 and a random number instruction; KVM shows the host's own processor."""
    emulated = find(tree(make()), "cpu")
    assert emulated.findtext("model") == "Nehalem"
    assert find(emulated, "feature").attrib == {"policy": "require", "name": "rdrand"}
    root = tree(make(accelerator="kvm"))
    assert root.get("type") == "kvm"
    assert find(root, "cpu").get("mode") == "host-passthrough"
    assert root.find("features/tcg") is None


def test_user_space_vsock() -> None:
    """A vhost-user device: shared memory, and QEMU told directly; commas doubled."""
    root = tree(make(vsock=VsockDevice("user", Path("/run/a,b/vu"), 7)))
    assert find(root, "memoryBacking/access").get("mode") == "shared"
    arguments = [a.get("value") for a in root.iter(f"{QEMU}arg")]
    assert arguments[0::2] == ["-chardev", "-device"]
    assert "path=/run/a,,b/vu" in str(arguments[1])
    assert str(arguments[3]).startswith("vhost-user-vsock-pci,")
    assert root.find("devices/vsock") is None


@pytest.mark.parametrize(
    ("cid", "attributes"), [(None, {"auto": "yes"}), (7, {"auto": "no", "address": "7"})], ids=["auto", "fixed"]
)
def test_kernel_vsock(cid: int | None, attributes: dict[str, str]) -> None:
    """libvirt's own device, private memory, nothing passed to QEMU behind libvirt's back."""
    root = tree(make(vsock=VsockDevice("kernel", None, cid)))
    assert find(root, "devices/vsock/cid").attrib == attributes
    assert root.find("memoryBacking") is None
    assert root.find(f"{QEMU}commandline") is None
    assert vsock_cid(render(make(vsock=VsockDevice("kernel", None, cid)))) == cid


def test_hostile_text_stays_text() -> None:
    """Paths and arguments with markup, quotes and template syntax come out as they went in."""
    spec = make(
        kernel=Path(HOSTILE),
        cmdline=HOSTILE,
        disks=(Disk(Path(HOSTILE), True),),
        boot_file=Path(HOSTILE),
        console_log=Path(HOSTILE) / "console.log",
        owner=replace(make().owner, home=HOSTILE),
    )
    root = tree(spec)
    assert root.findtext("os/kernel") == HOSTILE
    assert root.findtext("os/cmdline") == f"{HOSTILE} panic=-1"
    assert find(root, "devices/disk/source").get("file") == HOSTILE
    assert find(root, "sysinfo/entry").get("file") == HOSTILE
    assert find(root, "devices/serial/source").get("path") == f"{HOSTILE}/console.sock"
    assert find(root, f"metadata/{{{NAMESPACE}}}owner").get("home") == HOSTILE


@pytest.mark.parametrize("text", ["/a\nb", "/a\tb", "/a\x00b", "/a\udcffb", "/a\x1bb"], ids=repr)
def test_what_xml_cannot_carry_is_refused(text: str) -> None:
    """A path that would come out as another path is an error that shows it."""
    with pytest.raises(UserError, match="control or undecodable"):
        render(make(kernel=Path(text)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"memory_mb": 64}, "at least 128 MB"),
        ({"vcpus": 0}, "1 to 64"),
        ({"name": "a b"}, "short name"),
        ({"name": "-x"}, "short name"),
        ({"cmdline": "x" * 2048}, "2047 bytes"),
        ({"disks": (Disk(Path("/d"), True),) * (MAX_DISKS + 1)}, "at most"),
        ({"volumes": (Disk(Path("/d"), True),) * (MAX_VOLUMES + 1)}, "at most"),
        ({"volumes": (Disk(Path("/d"), True, "a,b"),)}, "serial"),
        ({"disks": (Disk(Path("/d"), True, "s" * 21),)}, "serial"),
        ({"disks": (Disk(Path("/d"), True, "a,b"),)}, "serial"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_out_of_range(change: dict[str, Any], says: str) -> None:
    """Each is refused in a sentence that names the bound."""
    with pytest.raises(UserError, match=says):
        make(**change)


def arguments(root: ET.Element) -> list[str]:
    """What libvirt passes to QEMU as it is."""
    return [str(argument.get("value")) for argument in root.iter(f"{QEMU}arg")]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("vsock", [None, VsockDevice("kernel", None, 7), VsockDevice("user", Path("/v"), 7)])
def test_a_machine_with_its_memory_in_a_file(shared: bool, vsock: VsockDevice | None) -> None:
    """The memory is ours, of the machine's size; a root port awaits vsock, which is plugged in later."""
    memory = MemoryFile(Path("/s/ram"), shared)
    root = tree(make(memory=memory, vsock=vsock))
    backend = f"memory-backend-file,id=voidbox-memory,size=512M,share={'on' if shared else 'off'},mem-path=/s/ram"
    assert arguments(root) == ["-object", backend, "-machine", "memory-backend=voidbox-memory"]
    assert find(root, "memoryBacking/source").get("type") == "file"
    assert find(root, "memoryBacking/access").get("mode") == "shared"
    port, *others = root.findall("devices/controller[@model='pcie-root-port']")
    assert (port.get("index"), find(port, "address").get("bus")) == ("1", "0x00")
    assert len(others) == MAX_VOLUMES
    assert root.find("devices/vsock") is None
    assert "vhost-user" not in ET.tostring(root, encoding="unicode")


def test_without_a_memory_file_there_is_no_root_port() -> None:
    """It costs an emulated boot about 40 ms, and nothing is plugged in later."""
    root = tree(make(vsock=VsockDevice("kernel", None, None)))
    assert root.find("devices/controller[@model='pcie-root-port']") is None
    assert arguments(root) == []


def test_root_ports_have_places_of_their_own() -> None:
    """Also beside the greatest number of disks; each volume is plugged into a port that is there."""
    disks = tuple(Disk(Path(f"/d/{n}"), True) for n in range(MAX_DISKS))
    spec = make(disks=disks, memory=MemoryFile(Path("/s/ram"), True))
    root = tree(spec)
    places = [
        tuple(map(a.get, ("bus", "slot", "function"))) for a in root.iter("address") if a.get("type") == "pci"
    ]
    assert len(set(places)) == len(places) == MAX_DISKS + 1 + MAX_VOLUMES
    for what in ("chassis", "port"):
        numbers = [target.get(what) for target in root.iter("target") if target.get(what)]
        assert len(set(numbers)) == len(numbers) == 1 + MAX_VOLUMES
    ports = {int(str(c.get("index"))) for c in root.iter("controller") if c.get("model") == "pcie-root-port"}
    volumes = [Disk(Path(HOSTILE), bool(n % 2), f"volume{n}", lasting=True) for n in range(MAX_VOLUMES)]
    plugged = [ET.fromstring(render_volume(spec, disk, n)) for n, disk in enumerate(volumes)]
    buses = {int(str(find(disk, "address").get("bus")), 16) for disk in plugged}
    assert buses == ports - {1}, "1 is for vsock"
    names = {str(t.get("dev")) for t in root.iter("target")} | {find(d, "target").get("dev") for d in plugged}
    assert len(names - {"None"}) == MAX_DISKS + MAX_VOLUMES
    assert {find(disk, "source").get("file") for disk in plugged} == {HOSTILE}
    assert [disk.find("readonly") is not None for disk in plugged] == [bool(n % 2) for n in range(MAX_VOLUMES)]
    with pytest.raises(UserError, match="control or undecodable"):
        render_volume(spec, Disk(Path("/v\n"), True), 0)


def test_what_outlives_the_machine_is_written_to_the_disk() -> None:
    """The guest's flushes count, unlike those to the scratch disk."""
    root = tree(make(volumes=(Disk(Path("/v"), False, "volume0", lasting=True),)))
    caches = [find(disk, "driver").get("cache") for disk in root.findall("devices/disk")]
    assert caches == ["writeback", "unsafe", "writeback"]
    assert find(root.findall("devices/disk")[-1], "serial").text == "volume0"


def test_incoming_waits_for_its_state() -> None:
    """QEMU is told where from only after it was started, by a descriptor."""
    memory = MemoryFile(Path("/s/ram"), True)
    plain, incoming = (arguments(tree(make(memory=memory, incoming=i))) for i in (False, True))
    assert incoming == [*plain, "-incoming", "defer"]


def test_a_memory_path_cannot_become_an_option() -> None:
    """A comma is doubled, markup is text, and what XML cannot carry is refused."""
    for path in ("/s,share=off/ram", HOSTILE):
        backend = arguments(tree(make(memory=MemoryFile(Path(path), True))))[1]
        assert backend.endswith(",share=on,mem-path=" + path.replace(",", ",,"))
    with pytest.raises(UserError, match="control or undecodable"):
        render(make(memory=MemoryFile(Path("/s\n/ram"), True)))


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
@pytest.mark.parametrize("kind", ["kernel", "user"])
def test_a_clone_is_its_template_but_for_names(accelerator: Accelerator, kind: Literal["kernel", "user"]) -> None:
    """What `Recipe.spec` makes of both, parsed: only names, paths and ``incoming`` differ."""
    image = SimpleNamespace(
        kernel=Path("/i/vmlinux"),
        initrd=Path("/i/initrd"),
        layers=(SimpleNamespace(path=Path("/i/base")), SimpleNamespace(path=Path("/i/tools"))),
        arguments=lambda _accelerator: "console=ttyS0 quiet",
    )
    recipe = Recipe(cast("Any", image), 512, 2, accelerator)

    def machine(box: str, **options: Any) -> ET.Element:
        dirs = BoxDirs(Path(f"/run/b/{box}"), Path(f"/cache/boxes/{box}"), Path(f"/shm/b/{box}"))
        owner = replace(make().owner, box=box)
        return tree(recipe.spec(dirs, owner, memory=MemoryFile(dirs.memory / "ram", True), **options))

    other = "vb-abcdefabcd"
    template = machine(BOX)
    clone = machine(other, vsock=VsockDevice(kind, Path("/v"), None), incoming=True)
    passed = find(clone, f"{QEMU}commandline")
    for argument in list(passed)[-2:]:
        passed.remove(argument)
    texts = [ET.canonicalize(ET.tostring(root, encoding="unicode"), strip_text=True) for root in (template, clone)]
    assert texts[0] != texts[1]
    assert texts[0] == texts[1].replace(other, BOX)

"""The layer that brings our agent to an image of somebody else's: an interpreter with all it needs, and the agent.

Everything is below /usr/lib/voidbox and starts through a dynamic loader of its own, so it asks nothing of the
image: another libc, none, or nothing at all. Around it only what every box has: mount points, and
the files in /etc that a container engine puts over an image's as well. The same layer serves all images.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError
from voidbox_lab.images import bytecode, squashfs, tools, unpack
from voidbox_lab.images import recipe as recipes
from voidbox_lab.images.apt import Apt, Package
from voidbox_lab.images.assemble import GUEST_CODE, guest_files, how, network_files, static_shell
from voidbox_lab.images.model import Progress, Report
from voidbox_lab.images.rootfs import FILES
from voidbox_lab.images.store import Blob, Store
from voidbox_lab.spec.digest import digest_bytes

RUNTIME = f"{GUEST_CODE}/rt"
_DIRECTORIES = {
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o755,
    "run": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
}
_OURS = ("etc/hostname", "etc/hosts", "etc/machine-id", "etc/resolv.conf")
_LIBRARY_WITHOUT = (
    "config-3*",
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tkinter",
    "turtledemo",
)
_MODULES_WITHOUT = ("_curses", "_dbm", "_gdbm", "_test", "_tkinter", "nis", "ossaudiodev", "readline", "xx")
"""Extension modules by how their names begin: what needs a terminal, a display or a library of its own."""


def runtime_layer(store: Store, base: dict[str, Any], report: Report) -> Blob:
    """The layer, made of what the image with the manifest `base` has. The caller holds the store's lock.

    Raises:
        ProviderError: that image is not made as expected, or a tool failed.
        Unavailable: a tool is missing, or a package cannot be had.
    """
    recipe = recipes.load("default")
    distribution, modules, busybox = _parts(base)

    def make(target: Path) -> None:
        report(Progress("guest", "Packing the guest agent for images of others"))
        root, tree = target.parent / "root", target.parent / "tree"
        for name, mode in _DIRECTORIES.items():
            unpack.make_directory(root / name).chmod(mode)
        for name, data in (_files() | network_files(store, modules)).items():
            _write(root / name, data, 0o755 if name.startswith(f"{GUEST_CODE}/bin/") else 0o644)
        wanted = ("usr/bin", "usr/lib64", "usr/lib/python3*", "usr/lib/*-linux-gnu")
        squashfs.extract(store.path(distribution), tree, wanted)
        bytecode.compile_tree(tree, root, GUEST_CODE)
        _interpreter(tree, unpack.make_directory(root / RUNTIME))
        deb = Apt(store.root, recipe.image.architecture).fetch([busybox])[busybox]
        _write(root / RUNTIME / "busybox", static_shell(recipe, deb, target.parent / "shell"), 0o755)
        squashfs.make(root, target, compression=recipe.image.compression)

    return store.step(inputs(base), "layers", make)


def inputs(base: dict[str, Any]) -> dict[str, Any]:
    """What the layer depends on, for `Store.step`."""
    distribution, modules, busybox = _parts(base)
    return {
        "how": how("bytecode", "squashfs", "unpack", "rootfs", "oci/runtime"),
        "mksquashfs": squashfs.version(),
        "distribution": distribution.digest,
        "modules": modules.digest,
        "busybox": busybox.to_dict(),
        "files": {name: digest_bytes(data) for name, data in _files().items()},
        "compression": recipes.load("default").image.compression,
    }


def _parts(base: dict[str, Any]) -> tuple[Blob, Blob, Package]:
    try:
        layer = next(d for d in base["layers"] if d["name"] == "distribution")
        return Blob.from_dict(layer), Blob.from_dict(base["modules"]), Package(**base["packages"]["initramfs"][0])
    except (StopIteration, LookupError, TypeError):
        raise ProviderError(
            "The default image was not built as expected; run `voidbox image build`.", cause="image-damaged"
        ) from None


def _files() -> dict[str, bytes]:
    """All code of ours, and the files of /etc, by path."""
    files = guest_files()
    # Not in /usr/bin, which may be anything in an image. Its interpreter is ours, not one the image may lack.
    del files["usr/bin/lab-agent"]
    files[f"{GUEST_CODE}/bin/lab-agent"] = files[f"{GUEST_CODE}/lab_agent/launcher.sh"]
    return files | {name: FILES[name].encode() for name in _OURS}


def _interpreter(tree: Path, target: Path) -> None:
    """Copy the Python of `tree` to `target`: loader, libraries, binary, standard library with its byte code."""
    loader, _, libraries, python = bytecode.interpreter(tree)[:4]
    version = Path(python).name
    source, library = tree / "usr" / "lib" / version, target / "lib" / version
    shutil.copytree(source, library, symlinks=True, ignore=shutil.ignore_patterns(*_LIBRARY_WITHOUT))
    for link in [p for p in library.rglob("*") if p.is_symlink()]:
        link.unlink()  # into /etc and the like: of no use elsewhere
    for module in (library / "lib-dynload").glob("*.so"):
        if module.name.startswith(_MODULES_WITHOUT):
            module.unlink()
    needed: set[Path] = set()
    for program in (Path(python), *sorted((library / "lib-dynload").glob("*.so"))):
        listed = tools.run([loader, "--library-path", libraries, "--list", program], timeout_s=30).decode()
        for line in listed.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            if arrow and not rest.startswith("/"):
                raise ProviderError(f"The image's {program.name} lacks the library {name[:80]}.")
            if arrow:
                needed.add(Path(rest.partition(" (")[0]))
    for path in sorted(needed):
        _write(target / "lib" / path.name, path.read_bytes(), 0o644)
    _write(target / "ld.so", Path(loader).read_bytes(), 0o755)
    _write(target / "bin" / "python3", Path(python).read_bytes(), 0o755)


def _write(path: Path, data: bytes, mode: int) -> None:
    unpack.make_directory(path.parent)
    path.write_bytes(data)
    path.chmod(mode)

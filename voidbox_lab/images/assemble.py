"""The steps of a build, each from inputs to one content-addressed file.

A step's inputs include the source of the modules that carry it out: change how a layer is made and it is
made anew, with nothing to remember. `build` puts the steps together.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from voidbox_lab.errors import ProviderError
from voidbox_lab.images import bytecode, initramfs, kernel, rootfs, scratch, squashfs, unpack
from voidbox_lab.images.apt import Package
from voidbox_lab.images.model import Progress, Report
from voidbox_lab.images.recipe import Recipe
from voidbox_lab.images.store import Blob, Store
from voidbox_lab.resources import data_dir
from voidbox_lab.spec.digest import digest_bytes

_HERE = Path(__file__).parent
GUEST_CODE = "usr/lib/voidbox"
NETWORK = f"{GUEST_CODE}/net"
"""Where the guest agent finds the kernel modules of `network_files`."""
_APPLETS = ("sh", "mount", "insmod", "switch_root", "poweroff")


def how(*modules: str) -> str:
    """Digest of the source of these modules of this package: the "how" among a step's inputs."""
    digest = hashlib.sha256()
    for name in ("assemble", *modules):
        digest.update((_HERE / f"{name}.py").read_bytes())
    return digest.hexdigest()


def distribution_layer(
    store: Store, recipe: Recipe, packages: Sequence[Package], debs: dict[Package, Path], report: Report
) -> Blob:
    """The layer of distribution packages, configured and compiled."""

    def make(target: Path) -> None:
        root = target.parent / "root"
        unpack.make_directory(root)
        unpack.merge_usr(root)
        tree = unpack.Tree(root, exclude=recipe.packages.exclude)
        done, total = 0, sum(p.size for p in packages)
        for package in packages:
            report(Progress("unpack", f"Unpacking {package.name} {package.version}", done, total))
            tree.add_deb(debs[package])
            done += package.size
        rootfs.configure(tree)
        report(Progress("compile", "Compiling the guest's Python library"))
        bytecode.compile_tree(root, root, "usr/lib")
        report(Progress("squash", "Packing the distribution layer"))
        squashfs.make(root, target, compression=recipe.image.compression)

    inputs = {
        "how": how("unpack", "rootfs", "bytecode", "squashfs"),
        "mksquashfs": squashfs.version(),
        "packages": [p.to_dict() for p in packages],
        "exclude": recipe.packages.exclude,
        "compression": recipe.image.compression,
    }
    return store.step(inputs, "layers", make)


def guest_files() -> dict[str, bytes]:
    """Path in the guest (no leading slash) to content, for all code of ours in it: agent, wire, agent CLI.

    Raises:
        ProviderError: the installation lacks the guest agent.
    """
    guest = data_dir("guest")
    sources = {
        "voidbox_guest": guest / "voidbox_guest",
        "lab_agent": guest / "lab_agent",
        "wire": _HERE.parent / "wire",
    }
    files = {}
    for package, source in sources.items():
        for path in sorted(source.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                files[f"{GUEST_CODE}/{package}/{path.relative_to(source).as_posix()}"] = path.read_bytes()
    start = guest / "init.py"
    if not start.is_file():
        raise ProviderError(f"The guest agent's {start} is missing; reinstall voidbox-lab.", cause="incomplete")
    files[f"{GUEST_CODE}/init.py"] = start.read_bytes()
    # A copy, not a link: an allowlist of all of /usr/bin/ must cover it.
    files["usr/bin/lab-agent"] = files[f"{GUEST_CODE}/lab_agent/launcher.py"]
    return files


def guest_layer(store: Store, recipe: Recipe, distribution: Blob, modules: Blob, report: Report) -> Blob:
    """The small layer with our own code, apart from the big one so that editing it costs a second."""
    files = guest_files()

    def make(target: Path) -> None:
        report(Progress("guest", "Packing the guest agent"))
        root = target.parent / "root"
        for name, data in (files | network_files(store, modules)).items():
            path = root / name
            unpack.make_directory(path.parent)
            path.write_bytes(data)
            path.chmod(0o755 if name.startswith("usr/bin/") else 0o644)
        # Only the interpreter out of the big layer, to compile with.
        python = target.parent / "python"
        squashfs.extract(
            store.path(distribution), python, ("usr/bin", "usr/lib64", "usr/lib/python3*", "usr/lib/*-linux-gnu")
        )
        bytecode.compile_tree(python, root, GUEST_CODE)
        shutil.rmtree(python)
        squashfs.make(root, target, compression=recipe.image.compression)

    inputs = {
        "how": how("bytecode", "squashfs", "unpack"),
        "mksquashfs": squashfs.version(),
        "files": {name: digest_bytes(data) for name, data in files.items()},
        "modules": modules.digest,
        "python": distribution.digest,
        "compression": recipe.image.compression,
    }
    return store.step(inputs, "layers", make)


def kernel_and_initramfs(
    store: Store,
    recipe: Recipe,
    packages: Sequence[Package],
    debs: dict[Package, Path],
    busybox: Package,
    report: Report,
) -> tuple[Blob, Blob, Blob, str]:
    """(kernel, initramfs, later modules, kernel release) from the kernel's packages and the static shell's."""
    init = (data_dir("guest") / "image" / "init").read_bytes()
    release = ""
    common = {"packages": [p.to_dict() for p in packages]}

    def unpacked(directory: Path) -> Path:
        root = directory / "kernel"
        if not root.exists():
            report(Progress("kernel", f"Unpacking the kernel {packages[0].name}"))
            root.mkdir()
            tree = unpack.Tree(root, include=("boot", "lib/modules", "usr/lib/modules"))
            for package in packages:
                tree.add_deb(debs[package])
        return root

    with store.workspace() as directory:

        def make_kernel(target: Path) -> None:
            images = sorted((unpacked(directory) / "boot").glob("vmlinuz-*"))
            if len(images) != 1:
                raise ProviderError(f"The kernel packages hold {len(images)} kernels where one is needed.")
            target.write_bytes(kernel.extract_vmlinux(images[0].read_bytes()))

        def ordered(wanted: Sequence[str], loaded: Sequence[str] = ()) -> tuple[tuple[str, bytes], ...]:
            modules_dir = _modules_dir(unpacked(directory))
            files = _Modules(kernel.index_modules(modules_dir))
            return kernel.load_order(wanted, files, kernel.builtin_modules(modules_dir) | set(loaded))

        def make_modules(target: Path) -> None:
            early = [name for name, _ in ordered(recipe.kernel.modules)]
            with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
                for n, (name, data) in enumerate(ordered(recipe.kernel.network, early)):
                    member = tarfile.TarInfo(f"{n:02}-{name}.ko")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))

        def make_initramfs(target: Path) -> None:
            order = ordered(recipe.kernel.modules)
            report(Progress("initramfs", f"Packing the initramfs with {len(order)} modules"))
            shell = static_shell(recipe, debs[busybox], directory / "shell")
            target.write_bytes(initramfs.archive(initramfs_entries(init, shell, order)))

        kernel_blob = store.step({"how": how("kernel", "unpack")} | common, "kernels", make_kernel)
        inputs = {
            "how": how("kernel", "initramfs", "unpack"),
            "init": digest_bytes(init),
            "shell": busybox.to_dict(),
            "modules": recipe.kernel.modules,
        }
        initrd_blob = store.step(inputs | common, "initrds", make_initramfs)
        inputs = {
            "how": how("kernel", "unpack"),
            "early": recipe.kernel.modules,
            "modules": recipe.kernel.network,
        }
        modules_blob = store.step(inputs | common, "modules", make_modules)
    release = kernel_release(packages)
    return kernel_blob, initrd_blob, modules_blob, release


def network_files(store: Store, modules: Blob) -> dict[str, bytes]:
    """Path in the guest to content, for the kernel modules that the guest agent loads for a network of its own.

    Raises:
        ProviderError: the file in the cache is damaged.
    """
    try:
        with tarfile.open(store.path(modules), "r:") as tar:
            return {f"{NETWORK}/{m.name}": tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]  # files all
    except (OSError, tarfile.TarError):
        raise ProviderError(
            "The kernel's modules in the image cache are damaged; run `voidbox image build`.", cause="cache"
        ) from None


def static_shell(recipe: Recipe, deb: Path, directory: Path) -> bytes:
    """The static shell's binary, out of its package `deb`, which is unpacked in the new `directory`.

    Raises:
        ProviderError: the package lacks it.
    """
    unpack.Tree(unpack.make_directory(directory)).add_deb(deb)
    name = recipe.initramfs.binary
    found = sorted(p for p in directory.rglob(name) if p.is_file() and p.parent.name == "bin")
    if not found:
        raise ProviderError(f"The package {recipe.initramfs.package} holds no {name}.")
    return found[0].read_bytes()


def kernel_release(packages: Sequence[Package]) -> str:
    """``uname -r`` of the kernel: Debian and Ubuntu carry it in the package's name."""
    for package in packages:
        for prefix in ("linux-image-unsigned-", "linux-image-"):
            rest = package.name.removeprefix(prefix)
            if rest != package.name and rest[:1].isdigit():
                return rest
    raise ProviderError("None of the kernel's packages names a kernel release.", cause="kernel-unusable")


def initramfs_entries(init: bytes, shell: bytes, modules: Sequence[tuple[str, bytes]]) -> list[initramfs.Entry]:
    """All that is in the initramfs."""
    folders = ("bin", "dev", "etc", "l", "m", "newroot", "proc", "scratch", *(f"l/{n}" for n in range(20)))
    return [
        *map(initramfs.directory, folders),
        # The kernel opens it for init before anything is mounted.
        initramfs.character_device("dev/console", 5, 1),
        initramfs.file("bin/busybox", shell, 0o755),
        *(initramfs.symlink(f"bin/{name}", "busybox") for name in _APPLETS),
        initramfs.file("etc/fstab", b"proc /proc proc defaults 0 0\ndevtmpfs /dev devtmpfs mode=0755 0 0\n"),
        initramfs.file("init", init, 0o755),
        *(initramfs.file(f"m/{name}.ko", data) for name, data in modules),
        initramfs.file("m/order", "".join(f"{name}\n" for name, _ in modules).encode()),
    ]


def scratch_template(store: Store, recipe: Recipe, report: Report) -> Blob:
    """The empty writable half of the overlay root."""

    def make(target: Path) -> None:
        report(Progress("scratch", f"Making a scratch disk of {recipe.image.scratch_mb} MiB (sparse)"))
        scratch.make(target, recipe.image.scratch_mb)

    return store.step({"how": how("scratch"), "size_mb": recipe.image.scratch_mb}, "scratch", make)


def _modules_dir(root: Path) -> Path:
    found = [
        p for base in ("lib/modules", "usr/lib/modules") for p in sorted((root / base).glob("*")) if p.is_dir()
    ]
    if len(found) != 1:
        raise ProviderError(f"The kernel packages hold modules for {len(found)} kernels where one is needed.")
    return found[0]


class _Modules(dict[str, bytes]):
    """Module files, read when first asked for: a kernel package has thousands."""

    def __init__(self, index: dict[str, Path]) -> None:
        super().__init__()
        self._index = index

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __missing__(self, name: str) -> bytes:
        self[name] = kernel.read_module(self._index[name])
        return self[name]

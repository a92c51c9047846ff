"""Squashfs layers, scratch templates, recipes and host tools: reproducible, and clear about what is missing."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from voidbox_lab.errors import LimitExceeded, ProviderError, Unavailable, UserError
from voidbox_lab.images import recipe, rootfs, scratch, squashfs, tools
from voidbox_lab.images.store import digest_sparse
from voidbox_lab.images.unpack import Tree, make_directory, merge_usr
from voidbox_lab.spec.digest import digest_file


def _tree(root: Path, seed: int) -> Path:
    names = [f"d{n % 5}/f{n}" for n in range(60)]
    random.Random(seed).shuffle(names)
    make_directory(root)
    for name in names:
        path = root / name
        make_directory(path.parent)
        path.write_bytes(name.encode() * 700)
        path.chmod(0o644)
        os.utime(path, (seed * 1000, seed * 1000))
    (root / "link").symlink_to("d0")
    return root


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_a_layer_depends_only_on_its_tree(tmp_path: Path, compression: squashfs.Compression) -> None:
    """Times, order of creation and umask do not show; one changed byte does."""
    digests = []
    for seed, umask in ((1, 0o022), (2, 0o077)):
        before = os.umask(umask)
        try:
            tree = _tree(tmp_path / str(seed), seed)
        finally:
            os.umask(before)
        squashfs.make(tree, tmp_path / f"{seed}.squashfs", compression=compression)
        digests.append(digest_file(tmp_path / f"{seed}.squashfs"))
    assert digests[0] == digests[1]
    (tmp_path / "2/d0/f0").write_bytes(b"changed")
    squashfs.make(tmp_path / "2", tmp_path / "2.squashfs", compression=compression)
    assert digest_file(tmp_path / "2.squashfs") != digests[0]


def test_a_part_of_a_layer_comes_out(tmp_path: Path) -> None:
    """With wildcards, as the guest layer's build uses it."""
    squashfs.make(_tree(tmp_path / "t", 1), tmp_path / "l", compression="none")
    squashfs.extract(tmp_path / "l", tmp_path / "out", ["d1", "d2/f*7"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["d1", "d2"]
    assert all(p.name.endswith("7") for p in (tmp_path / "out/d2").iterdir())


def test_the_scratch_template(tmp_path: Path) -> None:
    """Reproducible, nearly free of real blocks, clean for e2fsck, the agent's directories its own."""
    for name in ("a", "b"):
        scratch.make(tmp_path / name, 4096)
    path = tmp_path / "a"
    assert digest_sparse(path) == digest_sparse(tmp_path / "b")
    assert path.stat().st_size == 4096 << 20
    assert path.stat().st_blocks * 512 < 2 << 20
    e2fsck = shutil.which("e2fsck", path="/usr/sbin:/sbin:" + os.environ["PATH"])
    assert e2fsck, "e2fsck comes with mkfs.ext4"
    checked = subprocess.run([e2fsck, "-f", "-n", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    owners = {"upper": 0, "work": 0, "upper/home": 0, "upper/home/agent": 1000, "upper/workspace/output": 1000}
    for name, owner in owners.items():
        said = tools.run(["debugfs", "-R", f"stat {name}", path], timeout_s=20).decode()
        assert "Type: directory    Mode:  0755" in said
        assert f"User: {owner:5}   Group: {owner:5}" in " ".join(said.split("\n"))


def test_configure_without_maintainer_scripts(tmp_path: Path) -> None:
    """Users, certificates in one file, links and modes; a packaged directory gives way to a link."""
    root = make_directory(tmp_path / "root")
    merge_usr(root)
    certificates = make_directory(root / "usr/share/ca-certificates/mozilla")
    for name in ("b", "a"):
        (certificates / f"{name}.crt").write_text(f"-- {name} --\n\n")
    make_directory(root / "var/run/leftover")
    rootfs.configure(Tree(root))
    assert (root / "etc/ssl/certs/ca-certificates.crt").read_text() == "-- a --\n-- b --\n"
    assert "agent:x:1000:1000" in (root / "etc/passwd").read_text()
    assert (root / "var/run").is_symlink()
    assert (root / "usr/bin/awk").readlink() == Path("mawk")
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "etc/shadow").stat().st_mode & 0o777 == 0o600


def test_recipes() -> None:
    """The default one is valid; an unknown name lists the known ones and never becomes a path."""
    assert "python3" in recipe.load("default").packages.install
    for name in ("nope", "../default", "default.toml", ""):
        with pytest.raises(UserError, match=r"known are .*default"):
            recipe.load(name)


def test_tools_fail_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing: the package. Failing: its last lines. Too slow: the bound."""
    with pytest.raises(ProviderError, match=r"`sh` failed with status 3 .*: it broke"):
        tools.run(["/bin/sh", "-c", "echo it broke >&2; exit 3"], timeout_s=10)
    with pytest.raises(LimitExceeded, match=r"`sleep` did not end within 0\.1 s"):
        tools.run(["/bin/sleep", "30"], timeout_s=0.1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "_ALSO", ())
    for tool, package in (("mksquashfs", "squashfs-tools"), ("mkfs.ext4", "e2fsprogs"), ("dpkg-deb", "dpkg")):
        with pytest.raises(Unavailable, match=f"`{tool}`.*apt-get install {package}"):
            tools.find(tool)

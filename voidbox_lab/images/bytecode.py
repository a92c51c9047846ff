"""Compiles the guest's Python files with the guest's own Python, so that a box never compiles at start.

The interpreter is started through the tree's own dynamic loader: no chroot, no root, and the host may have
another Python or none of that version. Byte code is of the unchecked-hash kind (PEP 552): no source is
read or hashed when a module is imported, which under TCG is most of an import's time.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from voidbox_lab.errors import ProviderError
from voidbox_lab.images import tools

_SHARDS = 4
"""Fixed, not the number of CPUs: marshal's output depends on what the same process compiled before."""
_TIMEOUT_S = 600.0

_PROGRAM = r"""
import py_compile, sys
root = sys.argv[1]
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for name in sys.stdin.read().split("\0"):
    if name:
        try:
            py_compile.compile(root + "/" + name, dfile="/" + name, doraise=True, invalidation_mode=mode)
        except py_compile.PyCompileError as error:
            # Test data of other people's packages may be broken on purpose; ours may not.
            print("/" + name, error.exc_value, file=sys.stderr)
            if name.startswith("usr/lib/voidbox/"):
                sys.exit(1)
"""


def interpreter(tree: Path) -> list[str]:
    """The command that starts the Python found in `tree` on the host; the working directory is not on its path.

    Raises:
        ProviderError: there is none.
    """
    loaders = sorted((tree / "usr" / "lib64").glob("ld-linux-*.so.*")) + sorted(
        (tree / "usr" / "lib").glob("*-linux-gnu/ld-linux-*.so.*")
    )
    pythons = sorted(p for p in (tree / "usr" / "bin").glob("python3.*") if p.name[8:].isdigit())
    # Inside the tree the loader may be a link to an absolute path, that is: to the host's.
    loaders = [p for p in loaders if not p.is_symlink() or not str(p.readlink()).startswith("/")]
    if not loaders or not pythons:
        raise ProviderError("The image's tree has no Python or no dynamic loader; name python3 in its recipe.")
    libraries = [str(p) for p in sorted((tree / "usr" / "lib").glob("*-linux-gnu")) if p.is_dir()]
    return [str(loaders[0]), "--library-path", ":".join(libraries), str(pythons[-1]), "-P", "-s", "-S", "-B"]


def compile_tree(tools_tree: Path, target: Path, below: str) -> int:
    """Compile every ``.py`` below `target`/`below` with the Python in `tools_tree`; returns their number.

    Recorded file names are those in the guest: `target` stands for its root.

    Raises:
        ProviderError: a file of ours does not compile, or the guest's Python does not run here.
    """
    names = sorted(
        os.fspath(p.relative_to(target))
        for p in (target / below).rglob("*.py")
        if p.is_file() and not p.is_symlink()
    )
    command = [*interpreter(tools_tree), "-c", _PROGRAM, os.fspath(target)]
    # Not -I: it would ignore the hash seed too, on which the order of a set constant in byte code depends.
    env = {
        "PYTHONHASHSEED": "0",
        "PYTHONHOME": str(tools_tree / "usr"),
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
    }

    def one(shard: int) -> None:
        part = "\0".join(names[shard::_SHARDS]).encode()
        try:
            done = subprocess.run(
                command, input=part, capture_output=True, env=env, timeout=_TIMEOUT_S, check=False, umask=0o022
            )
        except subprocess.TimeoutExpired:
            raise tools.too_slow("python3", _TIMEOUT_S) from None
        except OSError as error:
            raise ProviderError(f"The guest's Python does not run on this machine ({error}).") from error
        if done.returncode:
            raise tools.failed("python3", done.returncode, done.stderr)

    with ThreadPoolExecutor(min(_SHARDS, os.cpu_count() or 1)) as pool:
        list(pool.map(one, range(_SHARDS)))
    return len(names)

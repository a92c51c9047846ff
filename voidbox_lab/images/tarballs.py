"""npm packages as single files: fetched by npm, checked against an integrity, and only what is named unpacked.

For what is one program in one package: agent CLIs, a runtime. Packages with dependencies are `layers.npm`'s.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError, Unavailable
from voidbox_lab.images import tools, unpack

_NPM_TIMEOUT_S = 900.0


def fetch(package: str, version: str, pinned: str | None, directory: Path, cache: Path) -> Path:
    """The package's tarball in `directory`, checked against `pinned` or else the registry's integrity.

    What is in npm's `cache` is taken from there, without a network.

    Raises:
        Unavailable: npm is missing, or the registry refuses or cannot be reached.
        ProviderError: what was fetched is not what was promised.
    """
    tools.find("npm")
    argv = ["npm", "pack", f"{package}@{version}", "--json", "--ignore-scripts", f"--cache={cache}"]
    argv += ["--pack-destination", str(directory)]
    try:
        try:
            printed = tools.run([*argv, "--prefer-offline"], timeout_s=_NPM_TIMEOUT_S, cwd=directory)
        except ProviderError as error:
            # The cached list of versions may be older than this one.
            if isinstance(error, Unavailable) or not re.search("ETARGET|notarget", error.message):
                raise
            printed = tools.run(argv, timeout_s=_NPM_TIMEOUT_S, cwd=directory)
        expected = pinned or _registry_integrity(package, version, directory)
    except ProviderError as error:
        if isinstance(error, Unavailable):
            raise
        raise Unavailable(
            f"npm did not deliver {package} {version} ({tools.last_words(error)[:300]}); "
            "check the network and npm's registry, then try again.",
            cause="npm-refused",
        ) from error
    tarball = directory / Path(_first(printed).get("filename", "")).name
    if not tarball.is_file():
        raise ProviderError(
            f"npm said that it packed {package} {version}, but no file is there.", cause="npm-output"
        )
    check_integrity(tarball, expected)
    return tarball


def _registry_integrity(package: str, version: str, directory: Path) -> str:
    argv = ["npm", "view", f"{package}@{version}", "dist.integrity", "--json"]
    try:
        return str(json.loads(tools.run(argv, timeout_s=120, cwd=directory)))
    except ValueError as error:
        raise ProviderError(f"npm named no integrity for {package} {version}.", cause="npm-output") from error


def _first(printed: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(printed)[0]
    except (ValueError, LookupError, TypeError):
        entry = None
    if not isinstance(entry, dict):
        raise ProviderError("npm pack printed something other than its list of packages.", cause="npm-output")
    return entry


def check_integrity(file: Path, integrity: str) -> None:
    """Compare `file` with a subresource-integrity string ``sha512-BASE64`` (W3C SRI).

    Raises:
        ProviderError: it differs, or `integrity` has another form.
    """
    try:
        kind, _, value = integrity.partition("-")
        expected = base64.b64decode(value, validate=True)
        if kind != "sha512" or len(expected) != 64:
            raise ValueError(kind)
    except (ValueError, binascii.Error):
        raise ProviderError(f"{integrity[:40]!r} is not a sha512 integrity.", cause="digest-mismatch") from None
    with file.open("rb") as stream:
        if not hmac.compare_digest(hashlib.file_digest(stream, "sha512").digest(), expected):
            raise ProviderError(
                f"{file.name} is not the file that its integrity promises; it was thrown away.",
                cause="digest-mismatch",
            )


def extract(tarball: Path, tree: unpack.Tree, files: dict[str, str]) -> None:
    """Write the members that `files` names to their places in `tree`, and nothing else.

    Raises:
        ProviderError: the archive is damaged or lacks one of them.
    """
    missing = dict(files)
    try:
        with tarfile.open(tarball, "r|gz") as tar:
            for member in tar:
                target = missing.pop(member.name, None) if member.isreg() else None
                content = tar.extractfile(member) if target else None
                if target is None or content is None:
                    continue
                path = tree.place(target)
                unpack.make_directory(path.parent)
                with path.open("xb") as out:
                    shutil.copyfileobj(content, out, 1 << 20)
                path.chmod(0o755 if "/bin/" in f"/{target}" else 0o644)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ProviderError(f"{tarball.name} is damaged ({error}).", cause="archive-damaged") from error
    if missing:
        raise ProviderError(f"{tarball.name} lacks {', '.join(sorted(missing))}.", cause="archive-damaged")

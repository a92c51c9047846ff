"""Python packages as a layer: one package and what it depends on, in a virtual environment of its own (PEP 405).

pip runs on this machine, but with the Python of the image (see `bytecode.interpreter`): what wheels fit, and what
environment markers say, is then what is true in the box. Only wheels are taken, which are unpacked and not run:
nothing of a package is executed here. Programs are the package's own, not those of what it depends on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

from voidbox_lab.errors import ProviderError, Unavailable, UserError
from voidbox_lab.images import bytecode, tools
from voidbox_lab.images.layers.base import LINKS, PREFIX, Base, Work, settle_modes
from voidbox_lab.images.layers.reference import Reference, normalized
from voidbox_lab.images.model import Progress
from voidbox_lab.images.unpack import Tree, make_directory
from voidbox_lab.spec.digest import digest_file

HOW = ("unpack", "bytecode", "layers/base", "layers/pypi")
_TIMEOUT_S = 900.0
_OPTIONS = ("--disable-pip-version-check", "--no-input", "--quiet", "--quiet", "--no-color")
_SYSTEM_WHEELS = Path("/usr/share/python-wheels")
"""Where Debian keeps what ensurepip elsewhere has inside (python3-pip-whl)."""
_UNREACHED = re.compile(r"Retrying|ConnectionError|timed out|HTTP error|40[137] Client|SSLError|Name or service")
_NO_MATCH = re.compile(r"No matching distribution found for (\S+)")
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def key(base: Base, _reference: Reference) -> Any:
    """What a plan depends on besides its reference: what decides which wheels fit."""
    return [base.recipe.image.architecture, base.minor, base.version("libc6").partition("-")[0]]


def plan(work: Work, reference: Reference) -> dict[str, Any]:
    """The wheels of the package and of all it depends on, fetched.

    Raises:
        UserError: there is no such package or version, it has no wheel for the image, or its dependencies
            contradict one another.
        Unavailable: there is no pip, or the index cannot be reached.
    """
    fetched = work.new()
    wanted = reference.name + (f"=={reference.version}" if reference.version else "")
    _pip(work, ["download", "--only-binary=:all:", "--dest", fetched, wanted], reference)
    wheels = []
    for wheel in sorted(fetched.iterdir()):
        digest = _keep(work, wheel)
        name, version = wheel.name.split("-")[:2]
        wheels.append({"file": wheel.name, "name": normalized(name), "version": version, "digest": digest})
    if reference.name not in {w["name"] for w in wheels}:
        raise ProviderError(f"pip fetched other wheels than that of {reference}.", cause="pip-output")
    return {"name": reference.name, "reference": str(reference), "wheels": wheels}


def files(lock: dict[str, Any]) -> list[dict[str, Any]]:
    """What was planned, for a manifest."""
    return [{k: w[k] for k in ("name", "version", "digest")} for w in lock["wheels"]]


def inputs(base: Base, lock: dict[str, Any]) -> Any:
    """What the layer depends on."""
    return [lock["name"], lock["wheels"], base.version(f"python3.{base.minor}-minimal")]


def fill(work: Work, lock: dict[str, Any], tree: Tree) -> None:
    """Make the environment and the links to its programs.

    Raises:
        Unavailable: a wheel is neither cached nor to be had.
        ProviderError: a wheel is not what it was when it was planned, or what is in it cannot be used.
    """
    name = lock["name"]
    work.report(Progress("packages", f"Installing pypi:{name} and {len(lock['wheels']) - 1} more into a layer"))
    inside = f"{PREFIX}/pypi/{name}"
    home = tree.place(inside, follow=True)
    site = make_directory(home / "lib" / f"python3.{work.base.minor}" / "site-packages")
    requirements = work.new() / "requirements.txt"
    requirements.write_text(
        "".join(f"{w['name']}=={w['version']} --hash={w['digest']}\n" for w in lock["wheels"]), encoding="utf-8"
    )
    exact = ["--no-deps", "--require-hashes", "--only-binary=:all:", "-r", requirements]
    wheels = _wheels(work, lock, exact)
    _pip(
        work,
        ["install", *exact, "--no-index", "--find-links", wheels, "--no-compile", "--target", site,
         "--no-warn-conflicts", "--root-user-action=ignore", "--upgrade"],
        None,
    )  # fmt: skip
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n", encoding="ascii")
    (make_directory(home / "bin") / "python3").symlink_to("/usr/bin/python3")
    (home / "bin" / "python").symlink_to("python3")
    programs = _programs(site, name, f"/{inside}/bin/python3")
    for program in programs:
        (site / "bin" / program).unlink(missing_ok=True)
    if (site / "bin").is_dir():
        programs |= _scripts(site, name, home / "bin", f"/{inside}/bin/python3")
        shutil.rmtree(site / "bin")
    for program, text in programs.items():
        target = home / "bin" / program
        if text is not None:
            target.write_text(text, encoding="utf-8")
            target.chmod(0o755)
        link = tree.place(f"{LINKS}/{program}")
        make_directory(link.parent)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/{inside}/bin/{program}")
    _forget_place(site)
    settle_modes(home)
    bytecode.compile_tree(work.python(), tree.root, os.fspath(home.relative_to(tree.root)))


def _programs(site: Path, name: str, python: str) -> dict[str, str | None]:
    """The console scripts of the package itself (entry points specification), by their names."""
    info = _info(site, name)
    programs: dict[str, str | None] = {}
    for point in PathDistribution(info).entry_points.select(group="console_scripts"):
        module, attribute = point.module, point.attr
        if not all(map(_DOTTED.fullmatch, (module, attribute))) or not _PROGRAM.fullmatch(point.name):
            raise ProviderError(
                f"The package {name} declares a program that cannot be one.", cause="archive-unsafe"
            )
        first = attribute.partition(".")[0]
        programs[point.name] = (
            f"#!{python}\nimport sys\nfrom {module} import {first}\n\n"
            f'if __name__ == "__main__":\n    sys.exit({attribute}())\n'
        )
    return programs


def _scripts(site: Path, name: str, target: Path, python: str) -> dict[str, str | None]:
    """Move what wheels bring as files for ``bin``, and name those of the package itself."""
    own = {
        row.partition(",")[0] for row in (_info(site, name) / "RECORD").read_text(encoding="utf-8").splitlines()
    }
    points = {
        point.name
        for info in site.glob("*.dist-info")
        for point in PathDistribution(info).entry_points.select(group="console_scripts")
    }
    found: dict[str, str | None] = {}
    for script in sorted((site / "bin").iterdir()):
        if script.name in points or not script.is_file() or not _PROGRAM.fullmatch(script.name):
            continue  # pip wrote it for a dependency
        data = script.read_bytes()
        line, _, rest = data.partition(b"\n")
        if line.startswith(b"#!") and b"python" in line:
            data = f"#!{python}\n".encode() + rest
        (target / script.name).write_bytes(data)
        (target / script.name).chmod(0o755)
        if f"../../bin/{script.name}" in own:
            found[script.name] = None
    return found


def _info(site: Path, name: str) -> Path:
    for info in sorted(site.glob("*.dist-info")):
        if normalized(info.name.removesuffix(".dist-info").rpartition("-")[0]) == name:
            return info
    raise ProviderError(f"pip installed no {name}, though it was asked to.", cause="pip-output")


def _forget_place(site: Path) -> None:
    """Take out of the records of installed packages what tells where they were installed here."""
    for info in site.glob("*.dist-info"):
        record = info / "RECORD"
        if record.is_file():
            rows = record.read_text(encoding="utf-8").splitlines()
            kept = [r for r in rows if not r.startswith("../") and "direct_url.json," not in r]
            record.write_text("\n".join(kept) + "\n", encoding="utf-8")
        (info / "direct_url.json").unlink(missing_ok=True)


def _keep(work: Work, wheel: Path) -> str:
    """Move a fetched file to the downloads; its digest."""
    if wheel.suffix != ".whl":
        raise UserError(f"pip fetched {wheel.name}, which is no wheel; nothing is built here.", cause="no-wheel")
    digest = digest_file(wheel)
    work.downloads.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(wheel, target := work.downloads / f".{digest[7:]}.new")
    target.replace(work.downloads / f"{digest[7:]}.whl")
    return digest


def _wheels(work: Work, lock: dict[str, Any], exact: list[Any]) -> Path:
    """A directory with the wheels of `lock` under their names, from the cache or else from the index."""
    directory = work.new()
    for wheel in lock["wheels"]:
        kept = work.downloads / f"{wheel['digest'][7:]}.whl"
        if not kept.is_file():
            break
        with kept.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wheel["digest"][7:]:
                break
        shutil.copyfile(kept, directory / wheel["file"])
    else:
        return directory
    again = work.new()
    _pip(work, ["download", *exact, "--dest", again], None)
    for wheel in again.iterdir():
        _keep(work, wheel)
    return again


def _pip(work: Work, arguments: list[Any], reference: Reference | None) -> None:
    """pip with the image's Python, on this machine."""
    python = work.python()
    place = work.directory / "pip"
    if not place.exists():
        place.mkdir()
        source = _find_pip()
        (place / source.name).symlink_to(source)
    path = next(place.iterdir())
    env = {
        "PYTHONHOME": str(python / "usr"),
        # The package alone out of its directory, or a wheel of it, which Python imports from as it is.
        "PYTHONPATH": str(path if path.suffix == ".whl" else place),
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_NO_COMPILE": "1",
    }
    local = Path(sys.prefix) / "pip.conf"
    if "PIP_CONFIG_FILE" not in os.environ and local.is_file():
        env["PIP_CONFIG_FILE"] = str(local)
    log = work.new() / "log"
    command = [*bytecode.interpreter(python), "-m", "pip", *arguments, *_OPTIONS, "--log", log]
    try:
        tools.run(command, timeout_s=_TIMEOUT_S, env=env)
    except Unavailable:
        raise
    except ProviderError as error:
        raise _refusal(error, reference, work.base, log) from error


def _refusal(error: ProviderError, reference: Reference | None, base: Base, log: Path) -> Exception:
    """What pip's failure means."""
    said = tools.last_words(error)[-300:]
    reached = not (log.is_file() and _UNREACHED.search(log.read_text(encoding="utf-8", errors="replace")))
    if reference and "ResolutionImpossible" in said:
        return UserError(
            f"What {reference} depends on cannot be had together ({said}); choose another version.",
            cause="no-package",
        )
    if reference and reached and (found := _NO_MATCH.search(said)):
        return UserError(
            f"There is no wheel of {found[1]}, which {reference} asks for, for CPython 3.{base.minor} on Linux "
            f"{base.recipe.image.architecture}; check name and version (source distributions are not taken, since "
            "nothing is built here).",
            cause="no-package",
        )
    return Unavailable(
        f"pip did not deliver {reference or 'a pinned wheel'} ({said}); check network and package index, then "
        "try again.",
        cause="pip-refused",
    )


def _find_pip() -> Path:
    """The directory of pip's package, or a wheel of it.

    Raises:
        Unavailable: this Python has none.
    """
    if (found := importlib.util.find_spec("pip")) is not None and found.origin is not None:
        return Path(found.origin).parent
    # Debian's Python has ensurepip in a package of its own (python3-venv).
    found = importlib.util.find_spec("ensurepip")
    bundled = [Path(found.origin).parent / "_bundled"] if found is not None and found.origin is not None else []
    for directory in (*bundled, _SYSTEM_WHEELS):
        if wheels := sorted(directory.glob("pip-*.whl")):
            return wheels[-1]
    raise Unavailable(
        f"Layers of PyPI packages are made with pip, which {sys.executable} lacks; install it into that "
        "environment, or run `sudo apt-get install python3-pip-whl`.",
        cause="host-tool-missing",
    )

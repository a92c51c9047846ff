"""apt's part, with a stand-in for apt-get on PATH: what is fetched, checked, reused, and said on failure."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from voidbox_lab.errors import ProviderError, Unavailable
from voidbox_lab.images.apt import Apt, Package, parse_uri_line

CONTENT = b"the package"
PACKAGE = Package("libattr1", "1:2.5.1-4", "amd64", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
LINE = f"'http://mirror/a.deb' libattr1_1%3a2.5.1-4_amd64.deb {len(CONTENT)} SHA256:{PACKAGE.sha256}"


@pytest.fixture
def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a shell script as `apt-get` that logs each call's last words to a file and then runs `body`."""
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.chdir(tmp_path)  # it writes where it is called

    def install(body: str) -> Path:
        script = tmp_path / "bin" / "apt-get"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$last" >> {log}\n{body}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        return log

    return install


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A directory that looks like the system's package lists."""
    directory = tmp_path / "lists"
    directory.mkdir()
    (directory / "mirror_main_binary-amd64_Packages.lz4").touch()
    return directory


def test_a_uri_line_becomes_a_package() -> None:
    """Epochs are quoted in file names."""
    assert parse_uri_line(LINE) == PACKAGE


@pytest.mark.parametrize(
    "line",
    [
        "",
        "'u a b c",
        "'u' a_1_amd64.deb 5",
        "'u' a_1_amd64.deb 5 MD5Sum:00",
        "'u' a.deb 5 SHA256:" + "0" * 64,
        "'u' a_1_b x SHA256:" + "0" * 64,
    ],
)
def test_other_lines_are_refused(line: str) -> None:
    """A package without a SHA-256 is never used."""
    with pytest.raises(ProviderError, match="not understood"):
        parse_uri_line(line)


def test_resolve_uses_only_its_own_state(tmp_path: Path, lists: Path, fake_apt) -> None:
    """The plan comes sorted; what apt may write is below the cache."""
    log = fake_apt(f'echo "Reading..."; echo "{LINE}"; echo "$@" > {tmp_path}/argv')
    assert Apt(tmp_path / "cache", "amd64", system_lists=lists).resolve(["a", "b"]) == (PACKAGE,)
    assert log.read_text() == "b\n"
    argv = (tmp_path / "argv").read_text()
    for option in ("Dir::State=", "Dir::State::status=", "Dir::Cache="):
        assert f"{option}{tmp_path}/cache" in argv
    assert f"Dir::State::lists={lists}" in argv


def test_unknown_packages_fetch_lists_once_then_say_so(tmp_path: Path, lists: Path, fake_apt) -> None:
    """Stale or missing system lists are made good with our own; what then is unknown is unavailable."""
    log = fake_apt('case "$*" in *update) exit 0;; esac; echo "E: Unable to locate package $last" >&2; exit 100')
    apt = Apt(tmp_path / "cache", "amd64", system_lists=lists)
    with pytest.raises(Unavailable, match=r"Unable to locate package ghost.*sudo apt-get update"):
        apt.resolve(["ghost"])
    assert log.read_text().split() == ["ghost", "update", "ghost"]


def test_no_network_says_so(tmp_path: Path, lists: Path, fake_apt) -> None:
    """One sentence with the fix, the tool's own words in it."""
    fake_apt('echo "E: Failed to fetch http://mirror/x  Could not resolve mirror" >&2; exit 100')
    with pytest.raises(
        Unavailable, match=r"1 package files \(libattr1\).*Could not resolve.*connect to a network"
    ):
        Apt(tmp_path / "cache", "amd64", system_lists=lists).fetch([PACKAGE])


def test_fetched_once(tmp_path: Path, lists: Path, fake_apt) -> None:
    """Exactly this version is asked for; the second time apt is not even started."""
    log = fake_apt(f"printf '%s' '{CONTENT.decode()}' > x.deb")
    seen: list[tuple[int, int]] = []
    apt = Apt(tmp_path / "cache", "amd64", system_lists=lists)
    path = apt.fetch([PACKAGE], lambda done, total: seen.append((done, total)))[PACKAGE]
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert apt.fetch([PACKAGE]) == {PACKAGE: path}
    assert log.read_text().split() == ["libattr1:amd64=1:2.5.1-4"]


@pytest.mark.parametrize("damage", [b"the pAckage", b"the pack", b""])
def test_a_damaged_cache_is_fetched_again(tmp_path: Path, lists: Path, fake_apt, damage: bytes) -> None:
    """Same size or cut short: only the digest counts."""
    fake_apt(f"printf '%s' '{CONTENT.decode()}' > x.deb")
    apt = Apt(tmp_path / "cache", "amd64", system_lists=lists)
    path = apt.fetch([PACKAGE])[PACKAGE]
    path.write_bytes(damage)
    assert apt.fetch([PACKAGE])[PACKAGE].read_bytes() == CONTENT


def test_another_file_than_promised_is_refused(tmp_path: Path, lists: Path, fake_apt) -> None:
    """And nothing of it stays."""
    fake_apt("printf evil > x.deb")
    with pytest.raises(ProviderError, match="not the file"):
        Apt(tmp_path / "cache", "amd64", system_lists=lists).fetch([PACKAGE])
    assert not list((tmp_path / "cache" / "packages").iterdir())


def test_no_apt_names_the_package(tmp_path: Path, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution without apt: unavailable, not a traceback."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("voidbox_lab.images.tools._ALSO", ())
    with pytest.raises(Unavailable, match="`apt-get`, which is not installed"):
        Apt(tmp_path / "cache", "amd64", system_lists=lists).resolve(["a"])

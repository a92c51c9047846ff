"""Which libvirt is chosen, and the embedded driver's directory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from voidbox_lab.errors import ProviderError, Unavailable, UserError
from voidbox_lab.machines import connection, embed
from voidbox_lab.machines.connection import Choice, choose
from voidbox_lab.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings nobody else has; no process root claimed."""
    return Settings(
        cache=tmp_path / "cache", data=tmp_path, runtime=Path("/run/user/1000/voidbox"), shm=tmp_path / "shm"
    )


@pytest.mark.parametrize(
    ("given", "uid", "kind", "uri"),
    [
        (None, 1000, "session", "qemu:///session"),
        (None, 0, "embed", "qemu:///embed?root=/run/user/1000/voidbox/lv"),
        ("qemu:///system", 0, "given", "qemu:///system"),
        ("qemu:///system", 1000, "given", "qemu:///system"),
        ("qemu:///embed?root=/x", 1000, "given", "qemu:///embed?root=/x"),
    ],
)
def test_the_choice(settings: Settings, given: str | None, uid: int, kind: str, uri: str) -> None:
    """The user's word, then who the user is."""
    choice = choose(replace(settings, libvirt_uri=given), uid=uid)
    assert (choice.kind, choice.uri) == (kind, uri)
    assert choice.reason


@pytest.mark.anyio
async def test_a_session_daemon_that_cannot_start(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user falls back to the embedded driver, and the reason is kept."""
    tried = []

    async def open_(settings: Settings, choice: Choice) -> Choice:
        tried.append(choice)
        if choice.kind == "session":
            raise Unavailable("no libvirtd", cause="no-daemon")
        return choice

    monkeypatch.setattr(connection, "_open", open_)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    await connection.connect(settings)
    assert [choice.kind for choice in tried] == ["session", "embed"]
    assert "no libvirtd" in tried[1].reason


@pytest.mark.anyio
@pytest.mark.parametrize(("uri", "cause"), [(None, "no-qemu"), ("qemu:///session", "no-daemon")])
async def test_no_fallback_where_it_would_not_help(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, uri: str | None, cause: str
) -> None:
    """Without QEMU no driver helps; and what the user named is not second-guessed."""

    async def open_(settings: Settings, choice: Choice) -> Choice:
        raise Unavailable(f"no, {choice.kind}", cause=cause)

    monkeypatch.setattr(connection, "_open", open_)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(ProviderError, match=r"no, (session|given)"):
        await connection.connect(replace(settings, libvirt_uri=uri))


def test_roots_in_uris() -> None:
    """An embedded driver's root is read back from its URI, odd characters included."""
    for root in (Path("/a/b"), Path("/a b/c&d?e#f")):
        assert embed.root_of(embed.uri_of(root)) == root
    assert embed.root_of("qemu:///session") is None
    assert embed.root_of("qemu:///embed") is None


def test_one_root_per_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first root stays: libvirt cannot load the driver a second time."""
    monkeypatch.setattr(embed, "_process_root", None)
    assert embed.claim_root(Path("/a")) == Path("/a")
    assert embed.claim_root(Path("/b")) == Path("/a")


def test_a_root_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before libvirt fails on it with a less helpful message."""
    monkeypatch.setattr(embed, "_process_root", None)
    with pytest.raises(UserError, match="58 bytes"):
        embed.claim_root(Path("/" + "x" * 60))


def test_a_prepared_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private, with the sandbox on; as root QEMU stays root, whose files it must read."""
    for uid in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        root = tmp_path / str(uid)
        embed.prepare(root, tmp_path / "cache")
        assert root.stat().st_mode & 0o777 == 0o700
        conf = (root / "etc" / "qemu.conf").read_text()
        assert "seccomp_sandbox = 1\n" in conf
        assert ('user = "root"' in conf) == (uid == 0)
        assert [p.name for p in (root / "etc").iterdir()] == ["qemu.conf"]


def test_capabilities_travel_through_the_cache(tmp_path: Path) -> None:
    """What libvirt learnt under one root is there in the next, and a newer answer replaces an older one."""
    cache, first, second = tmp_path / "cache", tmp_path / "a", tmp_path / "b"
    learnt = first / "cache" / "qemu" / "capabilities" / "1.xml"
    learnt.parent.mkdir(parents=True)
    learnt.write_text("old")
    embed.keep_capabilities(first, cache)
    embed.prepare(second, cache)
    copy = second / "cache" / "qemu" / "capabilities" / "1.xml"
    assert copy.read_text() == "old"
    learnt.write_text("new")
    os.utime(learnt, (copy.stat().st_mtime + 5,) * 2)
    embed.keep_capabilities(first, cache)
    embed.prepare(second, cache)
    assert copy.read_text() == "new"
    assert [p.name for p in copy.parent.iterdir()] == ["1.xml"]

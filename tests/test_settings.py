"""Directories: private, short enough for sockets, and told from the environment alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.settings import Settings


def test_a_home_holds_everything_but_sockets(tmp_path: Path) -> None:
    """However long the home's path, the socket's fits a sockaddr_un."""
    home = tmp_path / ("long" * 30)
    settings = Settings.from_env({"VOIDBOX_HOME": str(home)})
    assert settings.cache.is_relative_to(home)
    assert settings.data.is_relative_to(home)
    assert len(str(settings.socket)) < 60
    assert Settings.from_env({"VOIDBOX_HOME": str(tmp_path)}).runtime != settings.runtime


def test_the_runtime_directory_must_be_ours(tmp_path: Path) -> None:
    """A directory that others may enter is refused, never used."""
    settings = Settings.from_env({"XDG_RUNTIME_DIR": "/tmp/vb-test-xdg"} | {"VOIDBOX_HOME": str(tmp_path)})
    assert settings.prepare().runtime.stat().st_mode & 0o777 == 0o700
    settings.runtime.chmod(0o755)
    with pytest.raises(UserError, match="not a private directory"):
        settings.prepare()
    settings.runtime.rmdir()


def test_the_data_directory_is_private(tmp_path: Path) -> None:
    """Also one that an earlier release made open."""
    settings = Settings.from_env({"XDG_RUNTIME_DIR": "/tmp/vb-test-xdg", "VOIDBOX_HOME": str(tmp_path)})
    assert settings.prepare().data.stat().st_mode & 0o777 == 0o700
    settings.data.chmod(0o755)
    assert settings.prepare().data.stat().st_mode & 0o777 == 0o700
    settings.runtime.rmdir()


@pytest.mark.parametrize("name", ["VOIDBOX_ACCEL", "VOIDBOX_VSOCK"])
def test_a_wrong_choice_is_one_sentence(name: str) -> None:
    """It names the variable and the choices."""
    with pytest.raises(UserError, match=f"{name}='fast' is not one of auto, "):
        Settings.from_env({name: "fast"})


@pytest.mark.parametrize(
    "wrong", ["localhost:4318", "grpc://secret@a", "http://", "http://a?x=secret", "http://a:0"]
)
def test_a_collector_is_a_url(wrong: str) -> None:
    """Its message repeats nothing: a URL may hold a password."""
    assert Settings.from_env({}).otlp is None
    assert Settings.from_env({"VOIDBOX_OTLP_ENDPOINT": "https://a:4318/x/"}).otlp == "https://a:4318/x"
    with pytest.raises(UserError, match="VOIDBOX_OTLP_ENDPOINT is not the http") as caught:
        Settings.from_env({"VOIDBOX_OTLP_ENDPOINT": wrong})
    assert "secret" not in str(caught.value)


def test_where_runs_are_kept() -> None:
    """SQLite if nothing is said; a URL may hold a password, so neither errors nor `repr` show it."""
    assert Settings.from_env({}).store == "sqlite"
    for good in ("sqlite", "directory", "valkey://:secret@host/0", "rediss://host", "unix:///run/valkey.sock"):
        settings = Settings.from_env({"VOIDBOX_STORE": good})
        assert settings.store == good
        assert "secret" not in repr(settings)
    for wrong in ("mysql://:secret@host", "valky://:secret@host", "secret"):
        with pytest.raises(UserError, match="VOIDBOX_STORE is none of sqlite, directory") as caught:
            Settings.from_env({"VOIDBOX_STORE": wrong})
        assert "secret" not in str(caught.value)

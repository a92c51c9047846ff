"""Volumes as users write them."""

from __future__ import annotations

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.spec import validated
from voidbox_lab.spec.api import ExecRequest
from voidbox_lab.spec.volume import MAX_MOUNTS, Mount


def request(*volumes: object) -> ExecRequest:
    """A command with these."""
    return validated(ExecRequest, argv=("true",), volumes=volumes)


@pytest.mark.parametrize(
    ("text", "volume", "path", "read_only"),
    [
        ("cache:/data", "cache", "/data", False),
        ("a-b_1:/mnt/x.y/Z_:ro", "a-b_1", "/mnt/x.y/Z_", True),
        ("m:/models/7b:rw", "m", "/models/7b", False),
    ],
)
def test_a_mount_parses_and_prints(text: str, volume: str, path: str, read_only: bool) -> None:
    """From its text, from its JSON, from itself; all of one digest."""
    (mount,) = request(text).volumes
    assert mount == Mount(volume=volume, path=path, read_only=read_only)
    assert (
        request(
            str(mount),
        ).volumes
        == request(mount).volumes
        == (mount,)
    )
    again = ExecRequest.model_validate_json(request(text).model_dump_json())
    assert (again, again.digest) == (request(text), request(text).digest)


@pytest.mark.parametrize(
    ("volumes", "says"),
    [
        (["cache"], "VOLUME:PATH"),
        (["cache:"], "VOLUME:PATH"),
        (["cache:/data:rx"], "VOLUME:PATH"),
        (["cache:/data:ro:"], "VOLUME:PATH"),
        ([":/data"], "is not a name"),
        (["../x:/data"], "is not a name"),
        (["c:data"], "absolute path"),
        (["c:/"], "absolute path"),
        (["c:/data/"], "absolute path"),
        (["c:/data//x"], "absolute path"),
        (["c:/data/../usr"], "absolute path"),
        (["c:/data/./x"], "absolute path"),
        (["c:/da ta"], "absolute path"),
        (["c:/d\n"], "absolute path"),
        (["c:/" + "x" * 255], "at most 255"),
        (["c:/usr"], "own directory /usr"),
        (["c:/usr/local/x"], "own directory /usr"),
        (["c:/workspace"], "own directory /workspace"),
        (["c:/home/agent/x"], "own directory /home"),
        (["c:/proc/1"], "own directory /proc"),
        (["c:/tmp"], "own directory /tmp"),
        (["a:/data", "a:/mnt/x"], "'a' is named twice"),
        (["a:/data", "b:/data"], "in each other's way"),
        (["a:/data/x", "b:/data"], "in each other's way"),
        ([f"v{n}:/data/{n}" for n in range(MAX_MOUNTS + 1)], f"at most {MAX_MOUNTS}"),
    ],
)
def test_what_is_no_mount_is_refused(volumes: list[str], says: str) -> None:
    """In one sentence."""
    with pytest.raises(UserError, match=says):
        request(*volumes)


def test_neighbours_are_not_nested() -> None:
    """A common beginning of names is no nesting."""
    assert len(request("a:/data/x", "b:/data/xy", "c:/data2").volumes) == 3

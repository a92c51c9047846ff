"""The guest's side of volumes, as far as it needs no disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.harness import guest_box
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.resources import data_dir
from voidbox_lab.wire import protocol as p

_PROGRAM = """
import sys, os
sys.path[:0] = sys.argv[1:3]
from voidbox_guest import volumes
from voidbox_guest.calls import OpError
here = sys.argv[3]
def refused(act, *args):
    try:
        act(*args)
    except OpError as error:
        return error.code
    raise AssertionError(args)
"""


def run(tmp_path: Path, script: str) -> None:
    """`script` with the guest's module, as the guest runs it."""
    wire = Path(__file__).parents[2] / "voidbox_lab"
    argv = [sys.executable, "-I", "-S", "-c", _PROGRAM + script, str(data_dir("guest")), str(wire), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_a_place_hides_nothing_and_is_where_it_says(tmp_path: Path) -> None:
    """New or empty, and not led elsewhere by a link of the image."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "f").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    run(
        tmp_path,
        """
volumes.make_place(here + "/new/deep/er")
assert os.listdir(here + "/new/deep/er") == []
volumes.make_place(here + "/empty")
for name in ("full", "link", "link/x", "dangling", "dangling/x"):
    assert refused(volumes.make_place, here + "/" + name) == "exists", name
try:
    volumes.make_place(here + "/full/f")
except FileExistsError:
    pass
else:
    raise AssertionError
assert sorted(os.listdir(here)) == ["dangling", "empty", "full", "link", "new"]
""",
    )


def test_disks_are_found_by_serial(tmp_path: Path) -> None:
    """Never by order; one that appears after a rescan is found too, and none is waited for without end."""
    for name, serial in (("vda", "layer0"), ("vdb", "volume1\n"), ("vdc", "volume0")):
        (tmp_path / "block" / name).mkdir(parents=True)
        (tmp_path / "block" / name / "serial").write_text(serial)
    (tmp_path / "block" / "loop0").mkdir()
    for bus in ("0000:00", "0000:01", "0000:7f"):
        (tmp_path / "bus" / bus).mkdir(parents=True)
        (tmp_path / "bus" / bus / "rescan").touch()
    run(
        tmp_path,
        """
volumes.BLOCKS, volumes.BUSES, volumes.FIND_S = here + "/block", here + "/bus", 0.2
assert volumes.find("volume0") == "/dev/vdc"
assert volumes.find("volume1") == "/dev/vdb"
def rescanned(bus):
    with open(f"{here}/bus/{bus}/rescan") as file:
        return file.read() == "1"
assert not rescanned("0000:7f")
rescan = volumes.rescan
def plugged():
    os.mkdir(here + "/block/vdd")
    with open(here + "/block/vdd/serial", "w") as file:
        file.write("volume7")
    volumes.rescan = rescan
    return rescan()
volumes.rescan = plugged
assert volumes.find("volume7") == "/dev/vdd"
assert rescanned("0000:7f") and not rescanned("0000:00")
assert refused(volumes.find, "volume") == "busy"
""",
    )


@pytest.mark.anyio
async def test_what_is_asked_is_checked(tmp_path: Path) -> None:
    """Fields first; then an agent that is no PID 1 mounts nothing, and has nothing to unmount."""
    async with guest_box(tmp_path) as box:
        request = box._connection.request
        good = {"serial": "volume0", "path": "/data", "read_only": False}
        for bad in (
            {"serial": ""}, {"serial": "a/b"}, {"serial": 1}, {"path": "data"}, {"path": "/data/../x"},
            {"path": "/"}, {"read_only": 1}, {"path": "/" + "x" * p.MAX_PATH},
        ):  # fmt: skip
            with pytest.raises(UserError) as caught:
                await request(p.OP_MOUNT, **good | bad)
            assert caught.value.cause == p.BAD_REQUEST, bad
        with pytest.raises(ProviderError, match="mounts nothing"):
            await request(p.OP_MOUNT, **good)
        assert await request(p.OP_UNMOUNT) == {}


def test_a_folder_of_the_host_is_a_place_wherever_the_agent_runs(tmp_path: Path) -> None:
    """The policy that is set next finds it, and lets the agent write to it if it is not read-only."""
    run(
        tmp_path,
        """
from voidbox_guest.places import Places
places = Places(privileged=False)
assert places.disks() == []
places.add("/srv/in", read_only=True)
places.add("/srv/out", read_only=False)
assert places.disks() == [("/srv/in", True), ("/srv/out", False)]
""",
    )

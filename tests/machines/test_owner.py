"""Owners: whose box is it, and does that process live?"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from voidbox_lab.machines.owner import NAMESPACE, Owner, process_start_time
from voidbox_lab.settings import Settings

BOX = "vb-0123456789"


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """This process as an owner."""
    return Owner.current(
        Settings(cache=tmp_path, data=tmp_path, runtime=tmp_path / "run & <home>", shm=tmp_path / "shm"), BOX
    )


def test_this_process_is_alive(owner: Owner) -> None:
    """The owner that was just written down is alive."""
    assert owner.pid == os.getpid()
    assert owner.liveness() == "alive"


def test_an_ended_process_is_dead(owner: Owner) -> None:
    """After a process is reaped, and already while it is a zombie."""
    process = subprocess.Popen(["sleep", "1000"])
    start = process_start_time(process.pid)
    assert start is not None
    other = replace(owner, pid=process.pid, start_time=start)
    assert other.liveness() == "alive"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert other.liveness() == "dead", "a zombie owns nothing"
    process.wait()
    assert other.liveness() == "dead"


def test_a_reused_pid_is_another_process(owner: Owner) -> None:
    """The same pid with another start time is not the owner."""
    assert replace(owner, start_time=owner.start_time + 1).liveness() == "dead"


def test_out_of_sight_is_not_dead(owner: Owner) -> None:
    """Another boot and another container are told apart from a dead process."""
    assert replace(owner, boot_id="another").liveness() == "other-boot"
    assert replace(owner, pid_namespace=1).liveness() == "other-namespace"


def test_round_trip_through_xml(owner: Owner) -> None:
    """Attributes survive XML, whatever the home is called."""
    element = ET.Element(f"{{{NAMESPACE}}}owner", owner.attributes())
    assert Owner.from_xml(ET.tostring(element, encoding="unicode")) == owner


@pytest.mark.parametrize(
    "change",
    [{"pid": "x"}, {"pid": None}, {"box": "../../etc"}, {"box": "vb-0123456789/.."}, {"uid": []}, {"home": None}],
    ids=str,
)
def test_malformed_marks_are_refused(owner: Owner, change: dict[str, object]) -> None:
    """A mark that cannot be read is a ValueError, never an owner: its box name becomes a path."""
    with pytest.raises(ValueError, match=r".+"):
        Owner.from_mapping({key.replace("-", "_"): value for key, value in owner.attributes().items()} | change)


@pytest.mark.parametrize("text", ["", "<owner/>", "<a", "[]"])
def test_metadata_that_is_no_owner(text: str) -> None:
    """Other metadata under our name is refused."""
    with pytest.raises(ValueError, match=r".+"):
        Owner.from_xml(text)

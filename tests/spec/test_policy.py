"""What a policy says of itself."""

from __future__ import annotations

import pytest

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Policy, VoidBoxSpec, validated


def test_loosened() -> None:
    """The default is not; whatever is looser says so in words."""
    assert Policy().loosened == ()
    assert Policy(commands=("ls",), write=("/workspace",), read=("/etc",)).loosened == ()
    loose = validated(
        Policy,
        network="monitored",
        egress=("10.0.0.0/8:80",),
        syscalls=("ptrace",),
        commands=("/workspace/",),
        write=("/etc",),
        rlimits={"processes": 4000},
        caps={"pids": 4000},
    )
    assert loose.loosened == (
        "network monitored",
        "private addresses 10.0.0.0/8:80",
        "system calls ptrace",
        "execution of files in /workspace/",
        "writing to /etc",
        "rlimit processes 4000",
        "4000 processes",
    )
    assert Policy(network="allowlist", egress=("10.0.0.1:80",)).loosened == ("network allowlist",)


@pytest.mark.parametrize(
    "path", ["/", "/home/", "/var/", "/dev/", "/dev/shm/", "/tmp/bin/x", "/data/", "/data/bin/", "/ro/"]
)
def test_where_an_agent_writes_programs_are_a_loosening(path: str) -> None:
    """Also as part of what is above it, and on the volumes and folders of the box itself."""
    fields = {"name": "a", "command": ("true",), "volumes": ("v:/data", "w:/ro:ro")}
    box = validated(VoidBoxSpec, policy=Policy(commands=("sh", path)), **fields)
    assert box.loosened == (f"execution of files in {path}",)


def test_what_a_box_may_anyway_is_no_loosening() -> None:
    """Programs of the image, and writing to what is its own."""
    policy = Policy(
        commands=("sh", "/usr/", "/usr/local/bin/x"), write=("/data/out", "/mine", "/dev/shm/x", "/tmp")
    )
    fields = {"name": "a", "command": ("true",), "policy": policy}
    assert validated(VoidBoxSpec, volumes=("v:/data",), mounts=("/srv:/mine:rw",), **fields).loosened == ()
    looser = validated(VoidBoxSpec, volumes=("v:/data:ro",), mounts=("/srv:/mine",), **fields).loosened
    assert looser == ("writing to /data/out", "writing to /mine")


@pytest.mark.parametrize("name", ["/usr/../workspace/", "../workspace/x", "bin/x", "//home/", "/./"])
def test_a_program_is_a_name_or_an_absolute_path(name: str) -> None:
    """So that it says where it is."""
    with pytest.raises(UserError, match="is not an absolute path in the box"):
        validated(Policy, commands=(name,))

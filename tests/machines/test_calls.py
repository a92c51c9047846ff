"""Calls into libvirt: bounded, cleaned up after, and told in one sentence."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from voidbox_lab.errors import ProviderError, Unavailable
from voidbox_lab.machines.calls import call
from voidbox_lab.machines.library import libvirt
from voidbox_lab.machines.troubles import provider_error

pytestmark = pytest.mark.anyio


def failure(message: str) -> libvirt.libvirtError:
    """An error as libvirt raises it."""
    error = libvirt.libvirtError("x")
    error.err = (1, 10, message, 2, message, None, None, 0, 0)
    return error


async def test_the_result_comes_back() -> None:
    """Arguments in, result out, in another thread."""
    name, total = await call("add", 5, lambda a, b: (threading.current_thread().name, a + b), 1, 2)
    assert total == 3
    assert name == "libvirt: add"


async def test_a_hung_call_is_an_error_that_names_its_bound() -> None:
    """The caller goes on; the result that comes too late is undone."""
    release, undone = threading.Event(), threading.Event()

    def hang() -> str:
        release.wait(10)
        return "late"

    began = time.monotonic()
    with pytest.raises(ProviderError, match=r"did not start vb-x within 0\.1 s") as caught:
        await call("start vb-x", 0.1, hang, late=lambda result: result == "late" and undone.set())
    assert time.monotonic() - began < 2
    assert caught.value.cause == "timeout"
    assert not undone.is_set()
    release.set()
    assert await anyio.to_thread.run_sync(undone.wait, 5)


async def test_a_cancelled_call_is_undone_too() -> None:
    """Nobody holds the domain that was being created when its stage was cancelled."""
    release, undone = threading.Event(), threading.Event()
    with anyio.move_on_after(0.05) as scope:
        await call("start", 10, release.wait, 10, late=lambda _: undone.set())
    assert scope.cancelled_caught
    release.set()
    assert await anyio.to_thread.run_sync(undone.wait, 5)


async def test_a_hung_call_does_not_hold_up_others() -> None:
    """Any number may hang; the next one runs."""
    release = threading.Event()
    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(call, "hang", 20, release.wait, 20)
        with anyio.fail_after(5):
            assert await call("answer", 5, lambda: 42) == 42
        release.set()


async def test_libvirt_errors_become_ours() -> None:
    """With libvirt's error as the cause, and other exceptions as they are."""

    def fail() -> None:
        raise failure("internal error: something")

    with pytest.raises(ProviderError, match="could not start: internal error: something") as caught:
        await call("start", 5, fail)
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)
    with pytest.raises(ZeroDivisionError):
        await call("divide", 5, lambda: 1 // 0)


@pytest.mark.parametrize(
    ("message", "kind", "cause", "fix"),
    [
        ("Failed to parse user 'libvirt-qemu'", Unavailable, "no-account", "useradd"),
        ("no connection driver available for qemu:///embed", Unavailable, "no-driver", "apt install"),
        ("Cannot find suitable emulator for x86_64", Unavailable, "no-qemu", "qemu-system-x86"),
        (
            "qemu: cannot set up guest memory 'pc.ram': Cannot allocate memory",
            ProviderError,
            "host-memory",
            "smaller",
        ),
        ("Could not access KVM kernel module: Permission denied", Unavailable, "no-kvm", "VOIDBOX_ACCEL=tcg"),
        ("cannot open file '/x': Permission denied", Unavailable, "permission", "access"),
        ("Failed to connect socket to '/x': Permission denied", Unavailable, "no-daemon", "group"),
        (
            "unable to execute QEMU command 'blockdev-add': Failed to get \"write\" lock",
            ProviderError,
            "disk-locked",
            "gc",
        ),
        ("something new\nin two lines", ProviderError, "libvirt", "something new in two lines"),
    ],
)
async def test_known_troubles_name_their_fix(
    message: str, kind: type[ProviderError], cause: str, fix: str
) -> None:
    """What, where, what to do."""
    error = provider_error(failure(message), "start vb-x")
    assert type(error) is kind
    assert error.cause == cause
    assert fix in error.message
    assert "start vb-x" in error.message
    assert "\n" not in error.message


async def test_a_long_story_is_cut_in_the_middle() -> None:
    """QEMU's last words, which are at the end, are kept."""
    message = provider_error(failure("begin " + "x" * 5000 + " the end"), "start").message
    assert len(message) < 500
    assert "begin" in message
    assert "the end" in message

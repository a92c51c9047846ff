"""What the whole suite shares: honest skips, a count of boxes that really booted, and a look for leaks.

It runs in one process or in several beside each other (pytest-xdist); the first one counts and looks for all.

A test marked `vm` or `browser` may skip only for a missing thing that it names. With `VOIDBOX_REQUIRE_VM=1` such
a skip is a failure. A session of all tests that booted no box has failed in any case, and so has one that left
something behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from voidbox_lab.errors import Unavailable
from voidbox_lab.settings import Settings

REQUIRE_VM = os.environ.get("VOIDBOX_REQUIRE_VM") == "1"
LEAK_GRACE_S = 10.0
"""Boxes are torn down in the background; so long a process may outlive its test."""

_boot_log = pytest.StashKey[Path]()
_runtime = pytest.StashKey[Path]()
_vm_selected = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """All of voidbox-lab runs on asyncio. Session-wide, so that fixtures of any scope share one event loop."""
    return "asyncio"


def pytest_configure(config: pytest.Config) -> None:
    """Every process that this session starts counts its boxes in one file."""
    # Machines are shared: how long an example takes says nothing about the code.
    hypothesis.settings.register_profile(
        "shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("shared")
    if _is_worker(config):
        # Where a shell had this run in its background it is ignored, and then in all that tests start as well.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        config.stash[_boot_log] = Path(os.environ["VOIDBOX_BOOT_LOG"])
        config.stash[_runtime] = Path(os.environ["XDG_RUNTIME_DIR"], os.environ["PYTEST_XDIST_WORKER"])
        config.stash[_runtime].mkdir(mode=0o700)
    else:
        handle, name = tempfile.mkstemp(prefix="voidbox-boots-", suffix=".jsonl")
        os.close(handle)
        config.stash[_boot_log] = Path(name)
        os.environ["VOIDBOX_BOOT_LOG"] = name
        # Sockets of all homes that tests make lie here, so that none stays behind; short, for sockaddr_un.
        config.stash[_runtime] = Path(tempfile.mkdtemp(prefix="vbt-", dir="/tmp"))
    os.environ["XDG_RUNTIME_DIR"] = str(config.stash[_runtime])


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with boxes and browsers first: they take longest, and who shares the work ends together then."""
    slow = {item.path for item in items if _waits_for_machines(item)}
    items.sort(key=lambda item: item.path not in slow)


def _waits_for_machines(item: pytest.Item) -> bool:
    return bool(item.get_closest_marker("vm") or item.get_closest_marker("browser"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember how many selected tests want a box."""
    session.config.stash[_vm_selected] = sum(1 for i in session.items if i.get_closest_marker("vm"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """A missing thing skips a VM test, by name; nothing else does."""
    try:
        return (yield)
    except Unavailable as e:
        if item.get_closest_marker("vm"):
            pytest.skip(e.message)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where boxes are required, a skipped VM or browser test has failed, except where the test says that the
    skip is about hardware: ``pytest.skip("…; see scripts/test-kvm")`` names the lane that runs it."""
    report = yield
    if REQUIRE_VM and report.skipped and _waits_for_machines(item) and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "scripts/test-kvm" not in reason:
            report.outcome = "failed"
            report.longrepr = f"VOIDBOX_REQUIRE_VM=1 turns this skip into a failure: {reason}"
    return report


def _boots(config: pytest.Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in config.stash[_boot_log].read_text().splitlines()]


def _processes() -> Iterator[tuple[int, list[str], bytes]]:
    """PID, argument list and environment of every process this user can read."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(entry.name), argv, (entry / "environ").read_bytes()
            except OSError:
                continue


def _leaks(config: pytest.Config) -> list[str]:
    """QEMUs and directories of this session's boxes, and our own processes that carry its boot log."""
    domains = {boot["domain"] for boot in _boots(config)}
    mark = f"VOIDBOX_BOOT_LOG={config.stash[_boot_log]}".encode()
    found = []
    for pid, argv, environ in _processes():
        text = " ".join(argv)
        ours = mark in environ and ("voidbox_lab.vsock.device" in text or "voidbox_lab.daemon" in text)
        if ours or any(f"guest={name}," in text for name in domains):
            found.append(f"{pid}: {text[:120]}")
    cache = Settings.from_env().cache / "boxes"
    roots = (config.stash[_runtime], *_shms(config))
    places = [path for root in roots for path in root.glob("**/b/vb-*")]
    places += [cache / name for name in domains]
    return found + [f"directory {path}" for path in places if path.exists()]


def _shms(config: pytest.Config) -> Iterator[Path]:
    """Where boxes of this session keep memory: of this process and, below the first one's, of all others."""
    for runtime in (config.stash[_runtime], *config.stash[_runtime].glob("gw*")):
        yield Settings.from_env({"XDG_RUNTIME_DIR": str(runtime)}).shm


def _whole(config: pytest.Config) -> bool:
    """Whether this session was asked for all tests, and so for boxes."""
    options = config.option
    return config.args_source is config.ArgsSource.TESTPATHS and not (options.keyword or options.markexpr)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process that shared the work is done; all of them had selected the same tests."""
    if (selected := getattr(node, "workeroutput", {}).get("vm_selected")) is not None:
        node.config.stash[_vm_selected] = selected


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a session that left a box behind, or that should have booted one and did not."""
    config = session.config
    if _is_worker(config):
        config.workeroutput["vm_selected"] = config.stash.get(_vm_selected, 0)  # type: ignore[attr-defined]
        return
    if config.option.collectonly:
        return
    end = time.monotonic() + LEAK_GRACE_S
    while (left := _leaks(config)) and time.monotonic() < end:
        time.sleep(0.2)
    config.stash[_findings] = [f"left behind: {leak}" for leak in left]
    wanted = _whole(config) or (REQUIRE_VM and config.stash.get(_vm_selected, 0))
    if wanted and not _boots(config):
        config.stash[_findings].append("boxes were asked for and not one booted")
    if config.stash[_findings] and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_findings = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many boxes really booted, and on what."""
    boots = _boots(config)
    kinds = Counter(f"{b['isolation']}, {b['vsock']} vsock" for b in boots)
    detail = "; ".join(f"{n} x {kind}" for kind, n in sorted(kinds.items()))
    terminalreporter.write_sep("-", f"boxes booted: {len(boots)}" + (f" ({detail})" if detail else ""))
    for finding in config.stash.get(_findings, []):
        terminalreporter.write_line(f"FAILED {finding}", red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The count has been printed."""
    if _is_worker(config):
        return
    config.stash[_boot_log].unlink(missing_ok=True)
    for shm in [*_shms(config)]:
        shutil.rmtree(shm, ignore_errors=True)
    shutil.rmtree(config.stash[_runtime], ignore_errors=True)

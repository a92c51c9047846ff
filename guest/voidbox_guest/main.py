"""PID 1: boots, serves one host, powers off. It must never return and never raise: the kernel would panic."""

from __future__ import annotations

import os
from time import clock_gettime, sleep, time_ns

from wire.protocol import READY_LINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CLOCK_BOOTTIME = 7
GRACE_S = 0.2
"""Seconds between the end of the connection and power-off: for the last frame, and for killed commands."""


def main() -> NoReturn:
    """Run the box's life. Whatever happens, it ends with the power off."""
    try:
        _log(_live())
    except BaseException as error:
        _log(f"fatal: {type(error).__name__}: {error}{_where(error)}")
    from . import kernel

    sleep(GRACE_S)
    while True:
        kernel.power_off()
        sleep(1.0)


def _live() -> str:
    started = clock_gettime(CLOCK_BOOTTIME)
    from . import boot, image, kernel

    boot.mount_all()
    boot.own_descriptors()
    image.prepare()
    kernel.loopback_up()
    data, secret = boot.read_boot_data()
    cloned = bool(data.get("template"))
    if cloned:
        data, secret, started = _be_a_template()
    elif time_ns() > int(data.get("time_ns", 0)):
        data["time_ns"] = 0  # the hardware clock is younger than the file, and a clock must not go back
    boot.identify(data)
    if not cloned:
        boot.announce(READY_LINE)  # a clone's call to the host says it, and a line costs it 10 ms under TCG
    sock = boot.dial(int(data["control_port"]))
    dialled = clock_gettime(CLOCK_BOOTTIME)
    if not cloned:
        _prepare()  # while the host looks at our call: that time is free
    from . import agent

    decoder, frames = boot.shake_hands(sock, secret)
    facts = {
        "cloned": cloned,
        "pid1_s": started,
        "dialled_s": dialled,
        "serving_s": clock_gettime(CLOCK_BOOTTIME),
        "kernel": os.uname().release,
    }
    return "connection ended: " + agent.Agent(sock, boot=facts).serve(decoder, frames)


def _be_a_template() -> tuple[dict[str, Any], bytearray, float]:
    """Be saved and wake up in a clone; returns its boot data, its secret and the second at which it woke."""
    from . import boot, template, warm

    _prepare()
    warm.preload()
    boot.write_machine_id("")
    template.drop_caches()
    template.scrub_free_memory()
    data, secret = template.await_clone()
    woke = clock_gettime(CLOCK_BOOTTIME)
    template.find_new_devices()
    return data, secret, woke


def _prepare() -> None:
    """Load what serving needs, and make room for the pipes of every command, which gets limits of its own."""
    import resource

    from . import agent, trees

    trees.prepare_cgroups()
    agent.prepare()
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))


def _where(error: BaseException) -> str:
    frames, trace = [], error.__traceback__
    while trace is not None and len(frames) < 32:
        frames.append(f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " in " + " < ".join(reversed(frames)) if frames else ""


def _log(text: str) -> None:
    try:
        fd = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
        # <3>: KERN_ERR, so that it is shown on the console even of a quiet boot.
        os.write(fd, f"<3>voidbox-guest: {text}\n".encode("utf-8", "replace")[:900])
        os.close(fd)
    except OSError:
        pass  # no device yet: nowhere to say it

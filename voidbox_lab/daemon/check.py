"""``GET /v1/check``: boots a real box and measures what works on this machine. What `voidbox doctor` shows.

Every step is tried for real; a step that fails says how to mend it, and the ones that need it are not tried.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import anyio

from voidbox_lab import images
from voidbox_lab.box import Box
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.streams import Sender
from voidbox_lab.engine import Waiting
from voidbox_lab.engine.stage import CLOSE_S
from voidbox_lab.errors import CommandFailed, LimitExceeded, ProviderError, VoidboxError
from voidbox_lab.spec import Policy, Rootfs
from voidbox_lab.spec.api import CheckReport, CheckStep
from voidbox_lab.vsock import kernel_available

MEMORY_MB = 512
EXECS = 7
"""Commands timed; the first is reported apart, for it is cold."""
PINGS = 20
SAMPLE_S = 15.0
"""Bound on the first telemetry sample."""

Found = tuple[str, dict[str, Any]]


async def check(daemon: Daemon, send: Sender) -> None:
    """Send a `CheckStep` at the start and end of every step, then the `CheckReport`."""
    await _Check(daemon, send).run()


class _Check:
    def __init__(self, daemon: Daemon, send: Sender) -> None:
        self._daemon, self._send = daemon, send
        self._settings = daemon.settings
        self._done: list[CheckStep] = []

    async def run(self) -> None:
        image = await self._step("image", self._image)
        libvirt = await self._step("libvirt", self._libvirt)
        if image and libvirt:
            await self._step("accelerator", self._accelerator)
        await self._step("vsock", self._vsock)
        booted = bool(image and libvirt) and await self._with_box()
        await self._step("keys", self._keys)
        await self._send("report", CheckReport(ok=bool(booted), steps=tuple(self._done)), None)

    async def _step(self, name: str, work: Callable[[], Awaitable[Found]]) -> bool:
        await self._send("step", CheckStep(name=name, state="started"), None)
        began = time.monotonic()
        try:
            message, data = await work()
            warning = bool(data.pop("warning", False))
            step = CheckStep(name=name, state="warning" if warning else "ok", message=message, data=data)
        except VoidboxError as e:
            step = CheckStep(name=name, state="failed", message=e.message, data=e.to_dict())
        step = step.model_copy(update={"seconds": round(time.monotonic() - began, 4)})
        self._done.append(step)
        await self._send("step", step, None)
        return step.state != "failed"

    async def _image(self) -> Found:
        image = await anyio.to_thread.run_sync(images.resolve, self._settings, "default")
        size = sum(layer.size for layer in image.layers)
        return (
            f"image {image.name} {image.digest[:19]}, kernel {image.kernel_release}, {size >> 20} MiB of layers",
            {"digest": image.digest, "kernel": image.kernel_release, "layer_bytes": size},
        )

    async def _libvirt(self) -> Found:
        hypervisor = await self._daemon.backend.hypervisor()
        data = {
            "uri": hypervisor.uri,
            "why": hypervisor.reason,
            "libvirt": hypervisor.libvirt_version,
            "qemu": hypervisor.qemu_version,
        }
        return f"libvirt {data['libvirt']}, QEMU {data['qemu']}, {data['uri']} ({data['why']})", data

    async def _accelerator(self) -> Found:
        image = await anyio.to_thread.run_sync(images.resolve, self._settings, "default")
        verdict = await (await self._daemon.backend.boxes()).verdict(image)
        data = {"accelerator": verdict.accelerator, "reason": verdict.reason, "seconds": verdict.seconds}
        return f"{verdict.accelerator}: {verdict.reason}", data | {"warning": verdict.accelerator != "kvm"}

    async def _vsock(self) -> Found:
        why_not = await anyio.to_thread.run_sync(kernel_available)
        wanted = self._settings.vsock
        if why_not is None and wanted != "user":
            return "the host kernel's vhost-vsock", {"kind": "kernel"}
        because = "VOIDBOX_VSOCK=user" if why_not is None else why_not
        return f"the user-space device, since {because.rstrip('.')}", {
            "kind": "user",
            "kernel_unavailable": why_not,
        }

    async def _keys(self) -> Found:
        names = list(self._daemon.backend.key_names)
        return (f"model keys: {', '.join(names)}" if names else "no model keys; scripted models work without"), {
            "names": names
        }

    async def _with_box(self) -> bool:
        boxes: list[Box] = []

        async def waits(waiting: Waiting) -> None:
            message = f"waiting for room: {waiting}"
            await self._send("step", CheckStep(name="boot", state="started", message=message), None)

        async def boot() -> Found:
            await room.enter_async_context(
                self._daemon.admission.admitted(MEMORY_MB, 1, what="The check's box", tell=waits)
            )
            box = await (await self._daemon.backend.boxes()).open(
                memory_mb=MEMORY_MB, vcpus=1, rootfs=Rootfs(), gateway_socket=None, policy=Policy()
            )
            boxes.append(box)
            facts = box.facts
            how = {"cold": "booted", "clone": "cloned from its template", "spare": "a spare one"}[facts.start]
            message = f"a box was up in {facts.boot_s:.2f} s ({how}; {facts.isolation}, {facts.vsock} vsock)"
            if facts.start_note:
                message += f"; no clone: {facts.start_note}"
            return message, facts.model_dump(mode="json") | {"phases": getattr(box, "phases", {})}

        async with AsyncExitStack() as room:
            try:
                if not await self._step("boot", boot):
                    return False
                ran = await self._step("exec", lambda: _exec(boxes[0]))
                seen = await self._step("telemetry", lambda: _telemetry(boxes[0]))
                return ran and seen
            finally:
                for box in boxes:
                    with anyio.move_on_after(CLOSE_S, shield=True):
                        await box.close()


async def _exec(box: Box) -> Found:
    times = []
    for _ in range(EXECS):
        began = time.monotonic()
        done = await box.run(["/bin/true"], timeout_s=30)
        times.append(time.monotonic() - began)
        if done.exit_code != 0:
            raise CommandFailed(
                f"/bin/true ended with {done.exit_code} in a box; rebuild its image with `voidbox image build`.",
                exit_code=done.exit_code,
                cause="check-exec",
            )
    pings = sorted([await box.ping() for _ in range(PINGS)])
    first, rest = times[0], statistics.median(times[1:])
    message = (
        f"a command takes {rest * 1000:.0f} ms ({first * 1000:.0f} ms the first time), "
        f"an empty request {statistics.median(pings) * 1000:.2f} ms"
    )
    return message, {"first_s": first, "median_s": rest, "ping_median_s": statistics.median(pings)}


async def _telemetry(box: Box) -> Found:
    async with aclosing(box.telemetry(0.2)) as samples:  # type: ignore[type-var]  # an async generator behind its protocol
        with anyio.move_on_after(SAMPLE_S) as scope:
            async for sample in samples:
                used, total = sample.memory_used_kb >> 10, sample.memory_total_kb >> 10
                return f"{used} of {total} MiB of memory used, {sample.processes} processes", {
                    "memory_used_mb": used,
                    "memory_total_mb": total,
                }
    if scope.cancelled_caught:
        raise LimitExceeded(
            f"The guest sent no sample within {SAMPLE_S:g} s; try again when the machine is less busy.",
            limit="time",
            value=SAMPLE_S,
            unit="s",
        )
    raise ProviderError(
        "The guest ended its telemetry without a sample; rebuild the image with `voidbox image build`.",
        cause="no-telemetry",
    )

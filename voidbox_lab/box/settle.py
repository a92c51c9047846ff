"""The last steps of a box's start: a rehearsal for spares; then what differs between stages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import anyio

from voidbox_lab.box.birth import Birth
from voidbox_lab.box.box import Box, policy_fields
from voidbox_lab.box.connection import REQUEST_S, Connection
from voidbox_lab.box.denials import Denials
from voidbox_lab.box.egress import ENVIRONMENT, OpenEgress
from voidbox_lab.box.mounting import mount, mounted
from voidbox_lab.box.process import Process, started
from voidbox_lab.errors import UserError
from voidbox_lab.machines import Held
from voidbox_lab.spec import Policy
from voidbox_lab.wire import protocol as p

REHEARSAL = "/tmp/rehearsal"  # noqa: S108 - in the guest, before anything of the user's is there
REHEARSAL_S = 60.0
"""Seconds that each rehearsed command gets."""


async def settle(
    birth: Birth,
    box: Box,
    policy: Policy,
    gateway_socket: Path | None,
    held: Held | None,
    egress: OpenEgress | None = None,
) -> None:
    """Set the guest's clock, mount the volumes `held`, put `policy` in force and open the ways to the gateway and
    out.

    The requests leave together, and the guest takes them in order.

    Raises:
        UserError: the policy names a program that the image lacks; a volume cannot be mounted.
        Unseen: the guest does not find a volume's disk.
        BoxLost: the box is gone.
    """
    connection = birth.connection
    birth.begin_phase()
    # The boot data's time is as old as the boot, which may have been a slow one, or an hour ago.
    calls = [connection.open(p.OP_IDENTITY, time_ns=time.time_ns())]
    if gateway_socket is not None:
        port = birth.transport.forward(0, gateway_socket)
        calls.append(connection.open(p.OP_PROXY, listen=p.PROXY_PORT, port=port))
    if egress is not None:
        port = await birth.let_out(egress)
        calls.append(connection.open(p.OP_PROXY, listen=p.EGRESS_PORT, port=port))
        if policy.network == "open":
            calls.append(connection.open(p.OP_CAPTURE, port=port))
        box.environment = ENVIRONMENT
    calls.append(connection.open(p.OP_PING))
    # Before the policy, which may name programs on a volume.
    await mounted(mount(connection, held))
    await box.apply(policy)
    replies = [await call.bounded_result(REQUEST_S) for call in calls]
    facts = replies[-1].get("boot")
    birth.mark("policy")
    if isinstance(facts, dict):
        started, dialled = facts.get("pid1_s"), facts.get("dialled_s")
        if isinstance(started, float) and isinstance(dialled, float):
            birth.phases |= {"kernel": round(started, 3), "agent": round(dialled - started, 3)}
    box.phases = dict(birth.phases)


async def rehearse(connection: Connection, commands: Sequence[Sequence[str]] = ()) -> None:
    """Have the guest take a policy and run `commands` once: each path of its code is dear the first time, since an
    emulator translates it, and what a program reads is in the guest's memory afterwards.

    How they end does not matter. They run as the agent, in a home of their own that is removed: nothing is left.

    Raises:
        VoidboxError: the guest could not do it.
    """
    await connection.request(p.OP_IDENTITY, time_ns=time.time_ns())
    await connection.request(p.OP_POLICY, **policy_fields(Policy()))
    await connection.request(p.OP_MKDIR, path=REHEARSAL, user="agent", mode=0o700, parents=False)
    for argv in (("/bin/true",), *commands):
        call = connection.open(
            p.OP_EXEC,
            argv=list(argv),
            env={"HOME": REHEARSAL},
            cwd=REHEARSAL,
            user="agent",
            stdin=False,
            timeout_s=REHEARSAL_S,
        )
        try:
            pid = await started(call, REHEARSAL_S, Denials())
        except UserError:  # an image of somebody's own may lack it
            continue
        async with Process(call, tuple(argv), pid, False) as process:
            with anyio.move_on_after(REHEARSAL_S + REQUEST_S):
                await process.wait()
    await connection.request(p.OP_REMOVE, path=REHEARSAL, user="root", recursive=True)

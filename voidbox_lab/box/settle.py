"""The last steps of a box's start: a rehearsal for spares; then what differs between stages."""

from __future__ import annotations

import time
from pathlib import Path

from voidbox_lab.box.birth import Birth
from voidbox_lab.box.box import Box
from voidbox_lab.box.connection import REQUEST_S, Connection
from voidbox_lab.box.process import Process, started
from voidbox_lab.spec import Policy
from voidbox_lab.wire import protocol as p


async def settle(birth: Birth, box: Box, policy: Policy, gateway_socket: Path | None) -> None:
    """Set the guest's clock, put `policy` in force and open the way to the gateway.

    The requests leave together, and the guest takes them in order.

    Raises:
        UserError: the policy names a program that the image lacks.
        BoxLost: the box is gone.
    """
    connection = birth.connection
    birth.begin_phase()
    # The boot data's time is as old as the boot, which may have been a slow one, or an hour ago.
    calls = [connection.open(p.OP_IDENTITY, time_ns=time.time_ns())]
    if gateway_socket is not None:
        port = birth.transport.forward(0, gateway_socket)
        calls.append(connection.open(p.OP_PROXY, listen=p.PROXY_PORT, port=port))
    calls.append(connection.open(p.OP_PING))
    await box.apply(policy)
    replies = [await call.bounded_result(REQUEST_S) for call in calls]
    facts = replies[-1].get("boot")
    birth.mark("policy")
    if isinstance(facts, dict):
        started, dialled = facts.get("pid1_s"), facts.get("dialled_s")
        if isinstance(started, float) and isinstance(dialled, float):
            birth.phases |= {"kernel": round(started, 3), "agent": round(dialled - started, 3)}
    box.phases = dict(birth.phases)


async def rehearse(connection: Connection) -> None:
    """Have the guest run a command and take a policy once: each path of its code is dear the first time, since an
    emulator translates it, and the processor's caches are cold in any case. It leaves nothing behind in the guest.

    Raises:
        VoidboxError: the guest could not do it.
    """
    await connection.request(p.OP_IDENTITY, time_ns=time.time_ns())
    await connection.request(p.OP_POLICY, commands=None, rlimits=Policy().rlimits.model_dump())
    argv = ["/bin/true"]
    call = connection.open(p.OP_EXEC, argv=argv, env={}, cwd="/", user="agent", stdin=False, timeout_s=REQUEST_S)
    pid = await started(call, REQUEST_S)
    async with Process(call, tuple(argv), pid, False) as process:
        await process.wait()

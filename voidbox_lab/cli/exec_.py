"""``voidbox exec -- CMD``: one command in a fresh box, streamed, with its exit code."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError
from typer import Exit

from voidbox_lab.cli import complete
from voidbox_lab.cli.output import Json, ago, complain, json_line, remark
from voidbox_lab.cli.which import connected
from voidbox_lab.errors import LimitExceeded, ProviderError, UserError, VoidboxError
from voidbox_lab.spec import Policy
from voidbox_lab.spec.api import ExecExit, ExecOutput, ExecRequest, ExecStarted, ExecWaiting, Failed
from voidbox_lab.spec.egress import Network
from voidbox_lab.spec.validate import sentence

MAX_STDIN = 6 << 20
"""Bytes; what fits a request after base64."""
TIMED_OUT, OURS, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127
CAUSES = {"not-found": NOT_FOUND, "denied": NOT_EXECUTABLE, "not-executable": NOT_EXECUTABLE}
OPTIONS = {
    "memory_mb": "--memory",
    "timeout_s": "--timeout",
    "vcpus": "--vcpus",
    "image": "--image",
    "volumes": "--volume",
    "commands": "--allow-command",
    "egress": "--allow",
    "network": "--network",
    "mounts": "--mount",
}


Image = Annotated[str, typer.Option(help="Which image.", autocompletion=complete.images)]
Mounted = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:PATH[:ro]",
        help="A volume and where the box has it, see `voidbox volume`; may be given again.",
        show_default=False,
        autocompletion=complete.mounts,
    ),
]

Folders = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FOLDER:PATH[:rw]",
        help="A folder of this host and where the box has a copy of it; with rw, what is changed there comes "
        "back; may be given again.",
        show_default=False,
    ),
]


Allowed = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST:PORT",
        help="A way out of the box, such as pypi.org:443; may be given again. Implies --network allowlist.",
        show_default=False,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="PROFILE",
        help=f"What the box may reach: {', '.join(get_args(Network))}; else none.",
        show_default=False,
        autocompletion=lambda: list(get_args(Network)),
    ),
]


def policy_of(
    command: str, programs: Sequence[str] | None, allow: Sequence[str] | None, network: str | None
) -> Policy | None:
    """The policy that the options of `command` make; None: they say nothing.

    Raises:
        UserError: they are no policy.
    """
    fields: dict[str, Any] = {}
    if programs:
        fields["commands"] = tuple(programs)
    if allow:
        fields |= {"egress": tuple(allow), "network": "allowlist"}
    if network is not None:
        fields["network"] = network
    try:
        return Policy.model_validate(fields) if fields else None
    except ValidationError as e:
        raise UserError(in_options(sentence(command, e))) from e


def exec_(
    argv: Annotated[list[str], typer.Argument(metavar="-- CMD [ARG]...", help="The command.", show_default=False)],
    memory: Annotated[int, typer.Option(help="Memory of the box, in MB.")] = 512,
    vcpus: Annotated[int, typer.Option(help="Virtual CPUs of the box.")] = 1,
    timeout: Annotated[float, typer.Option(help="Bound on the command, in seconds; boot is bounded apart.")] = 300,
    image: Image = "default",
    allow_command: Annotated[
        list[str] | None,
        typer.Option(help="Only these programs may run in the box; may be given again.", show_default=False),
    ] = None,
    allow: Allowed = None,
    network: Profile = None,
    volume: Mounted = None,
    mount: Folders = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Give the command our standard input.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what the box is.")] = False,
    json: Json = False,
) -> None:
    """Run a command in a fresh box, streaming its output; the exit code is the command's own.

    What it changed in a folder mounted rw comes back if that is 0.

    With --json its events are printed, one JSON object a line, with what the command wrote in base64.
    """
    try:
        request = ExecRequest(
            argv=tuple(argv),
            memory_mb=memory,
            vcpus=vcpus,
            timeout_s=timeout,
            image=image,
            stdin=_stdin() if stdin else None,
            policy=policy_of("voidbox exec", allow_command, allow, network) or Policy(),
            volumes=tuple(volume or ()),
            mounts=folders(mount),
        )
    except ValidationError as e:
        raise UserError(in_options(sentence("voidbox exec", e))) from e
    try:
        with connected() as client:
            for event in client.execute(request):
                if json and not isinstance(event, Failed):
                    sys.stdout.write(json_line(event.model_dump(mode="json")) + "\n")
                    sys.stdout.flush()
                match event:
                    case ExecWaiting(message=message):
                        remark(message)
                    case ExecStarted(facts=facts) if verbose:
                        remark(
                            f"box {facts.domain}: {facts.isolation}, {facts.vsock} vsock, {facts.memory_mb} MB, "
                            f"up after {ago(facts.boot_s)} ({facts.start})"
                        )
                    case ExecOutput() if json:
                        pass
                    case ExecOutput(stream=stream, data=data):
                        target = sys.stdout if stream == "stdout" else sys.stderr
                        target.buffer.write(base64.b64decode(data))
                        target.buffer.flush()
                    case ExecExit():
                        raise Exit(_code(event, timeout))
                    case Failed(error=error):
                        raise ProviderError(str(error.get("message")))
    except UserError as e:
        complain(e)
        raise Exit(CAUSES.get(e.cause or "", OURS)) from e
    except VoidboxError as e:
        code = complain(e)
        raise Exit(code if e.kind == "cancelled" else OURS) from e
    raise ProviderError("The daemon ended the command's stream without its exit code; see its log.")


def folders(mounts: list[str] | None) -> tuple[str, ...]:
    """What ``--mount`` says, with whole paths."""
    if not mounts:
        return ()
    from voidbox_lab.api import absolute_mount

    return tuple(absolute_mount(mount) for mount in mounts)


def in_options(said: str) -> str:
    """`said` with the names of our options instead of those of the request's fields."""
    for field, option in OPTIONS.items():
        # Of one of several, the message names the value.
        said = re.sub(rf"option '{field}(\.[\w.]+)?'", option, said)
    return said


def _code(ended: ExecExit, timeout: float) -> int:
    if ended.timed_out:
        complain(
            LimitExceeded(
                f"The command took longer than {timeout:g} s; give --timeout more.",
                limit="time",
                value=timeout,
                unit="s",
                source="user",
            )
        )
        return TIMED_OUT
    if ended.signal is not None:
        return 128 + ended.signal
    return ended.code if ended.code is not None else OURS


def _stdin() -> str:
    """All of our standard input, as base64."""
    try:
        data = sys.stdin.buffer.read(MAX_STDIN + 1)
    except OSError as e:
        raise UserError(f"Standard input cannot be read ({e.strerror}); leave --stdin out.") from e
    if len(data) > MAX_STDIN:
        raise UserError(
            f"Standard input has more than {MAX_STDIN} bytes; give large data to a stage as an input file."
        )
    return base64.b64encode(data).decode()

"""What a stage may do: programs and files, system calls, resources, ways out of its box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from voidbox_lab.cards import Card, Shown
from voidbox_lab.spec.base import Spec
from voidbox_lab.spec.egress import MAX_PATTERNS, EgressLimits, EgressPattern, Network, parse_destination
from voidbox_lab.spec.validate import validated

SyscallGroup = Literal[
    "af-vsock",
    "bpf",
    "kernel-modules",
    "kexec",
    "keyrings",
    "memfd",
    "mount",
    "namespaces",
    "packet-sockets",
    "perf",
    "ptrace",
    "reboot",
    "time",
    "userfaultfd",
]
"""System calls that agents are denied, by what they are for; `voidbox_guest.seccomp` has the calls of each."""


def _guest_path(path: str) -> str:
    parts = path.removesuffix("/").split("/")[1:]
    if not path.startswith("/") or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"{path!r} is not an absolute path in the box without '.' or '..', such as /workspace")
    return path.removesuffix("/") or "/"


def _exec_name(name: str) -> str:
    if "/" in name:
        _guest_path(name)
    return name


ExecName = Annotated[str, Field(pattern=r"^[\w.+/@-]+$", max_length=255), AfterValidator(_exec_name)]
"""A program: a name, or an absolute path."""
GuestPath = Annotated[str, Field(max_length=1024, pattern=r"^/[^\x00-\x1f]*$"), AfterValidator(_guest_path)]
"""A file, or a directory with all below it."""


class Rlimits(Spec):
    """Resource limits of every process the agent starts, as in setrlimit(2)."""

    open_files: int = Field(1024, ge=16, le=65536)
    """RLIMIT_NOFILE."""
    processes: int = Field(256, ge=8, le=4096)
    """RLIMIT_NPROC: processes and threads of the agent's uid."""
    file_mb: int = Field(1024, ge=1, le=1 << 20)
    """RLIMIT_FSIZE in MiB: the largest file that can be written."""
    core_mb: int = Field(0, ge=0, le=1024)
    """RLIMIT_CORE in MiB."""


class Caps(Spec):
    """Bounds on all processes of the agent together, as a control group of theirs (cgroups(7), v2)."""

    memory_mb: int | None = Field(None, ge=16, le=1 << 20)
    """memory.max in MiB; None: all of the box's but what its kernel and guest agent need."""
    pids: int = Field(512, ge=8, le=8192)
    """pids.max: processes and threads."""
    cpus: float | None = Field(None, gt=0, le=64)
    """cpu.max, in CPUs; None: all of the box's."""


class Policy(Shown, Spec):
    """The policy of a stage. The defaults are safe; loosening is explicit and recorded."""

    network: Network = "none"
    egress: tuple[EgressPattern, ...] = Field((), max_length=MAX_PATTERNS)
    """``HOST:PORT`` patterns: what ``allowlist`` allows; and, for every profile but ``none``, the private
    addresses that may be reached, each named as an address or a range."""
    egress_limits: EgressLimits = EgressLimits()
    commands: tuple[ExecName, ...] | None = None
    """Programs the agent and all its children may execute: names looked up on the guest's PATH, or
    absolute paths; a path that ends in ``/`` allows everything below it. None: all of the image's own
    programs, and nothing that the agent wrote itself."""
    read: tuple[GuestPath, ...] | None = Field(None, max_length=64)
    """Files and directories the agent may read, besides programs, libraries and its own directories; None: all
    that its user may."""
    write: tuple[GuestPath, ...] | None = Field(None, max_length=64)
    """Files and directories the agent may write; None: its own (``/workspace``, ``/home/agent``, ``/tmp``,
    ``/var/tmp``), and volumes and mounts that are not read-only."""
    syscalls: tuple[SyscallGroup, ...] = ()
    """Groups of dangerous system calls that are allowed nevertheless."""
    rlimits: Rlimits = Rlimits()
    caps: Caps = Caps()

    @model_validator(mode="after")
    def _fits(self) -> Policy:
        if self.egress and self.network == "none":
            raise ValueError(
                "egress names hosts, but the network is 'none'; set network to 'allowlist' to allow just those"
            )
        if self.network == "allowlist" and not self.egress:
            raise ValueError(
                "the network is 'allowlist', but egress names no host; add some, such as pypi.org:443"
            )
        return self

    @classmethod
    def allow(cls, *destinations: str, **fields: Any) -> Policy:
        """A policy whose network is an allowlist of these, ``HOST:PORT`` each; `fields` are its others.

        Raises:
            UserError: one is not HOST:PORT, or a value is out of range.
        """
        return validated(cls, network="allowlist", egress=destinations, **fields)

    @property
    def loosened(self) -> tuple[str, ...]:
        """In what it is looser than the default, in words; nothing for a safe policy."""
        return self.loosened_beside()

    def loosened_beside(self, writable: Sequence[str] = (), read_only: Sequence[str] = ()) -> tuple[str, ...]:
        """The same in a box with volumes and folders at these places, where nothing is executed by default."""
        found = [] if self.network == "none" else [f"network {self.network}"]
        if self.network != "none" and self.network != "allowlist":
            found += [f"private addresses {e}" for e in self.egress if parse_destination(e).network is not None]
        found += [f"system calls {group}" for group in sorted(self.syscalls)]
        places = (*AGENT_DIRECTORIES, "/dev/shm", *writable)  # noqa: S108 - in the guest
        for path in self.commands or ():
            if any(_within(path, place) or _within(place, path) for place in (*places, *read_only)):
                found.append(f"execution of files in {path}")
        found += [f"writing to {w}" for w in self.write or () if not any(_within(w, place) for place in places)]
        for name, most in Rlimits().model_dump().items():
            if getattr(self.rlimits, name) > most:
                found.append(f"rlimit {name} {getattr(self.rlimits, name)}")
        if self.caps.pids > Caps().pids:
            found.append(f"{self.caps.pids} processes")
        return tuple(found)

    def _card(self) -> Card:
        each, all_ = self.rlimits, self.caps
        facts = (
            ("network", _NETWORKS[self.network]),
            ("egress", ", ".join(self.egress)),
            ("commands", _named(self.commands, "the image's own")),
            ("reads", _named(self.read, "what its user may")),
            ("writes", _named(self.write, "its own directories")),
            ("system calls", ", ".join(("the usual ones", *self.syscalls))),
            ("a process", f"{each.open_files:,} open files, files of {each.file_mb:,} MiB"),
            ("together", f"{min(all_.pids, each.processes):,} processes{_bounds(all_)}"),
        )
        looser = [text for text in self.loosened if text != f"network {self.network}"]
        badges = tuple(("warn", text) for text in looser) or ()
        return Card("policy", self.network, badges=badges, facts=facts)


def _named(names: tuple[str, ...] | None, default: str) -> str:
    return default if names is None else ", ".join(names) or "none"


def _bounds(caps: Caps) -> str:
    memory = "" if caps.memory_mb is None else f", {caps.memory_mb:,} MiB of memory"
    return memory if caps.cpus is None else f"{memory}, {caps.cpus:g} CPUs"


_NETWORKS: dict[Network, str] = {
    "none": "no way out besides its model",
    "allowlist": "to what egress names, through a proxy",
    "monitored": "to every public address, through a proxy",
    "proxy-only": "HTTP and HTTPS to every public address, through a proxy",
    "open": "to every public address, through a proxy, of programs as well that know of none",
}


AGENT_DIRECTORIES = ("/workspace", "/home/agent", "/tmp", "/var/tmp")  # noqa: S108 - in the guest
"""What the agent may write to unless told otherwise."""


def _within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or below it; a command that is a directory ends in ``/``."""
    return f"{path}/".startswith(directory if directory.endswith("/") else f"{directory}/")

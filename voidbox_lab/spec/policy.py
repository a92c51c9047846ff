"""What a stage may do: programs it may execute, resources it may use, ways out of its box."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from voidbox_lab.spec.base import Spec

Network = Literal["none"]
"""Ways out besides the model. Only ``none`` so far: the box has no network card."""

ExecName = Annotated[str, Field(pattern=r"^[\w.+/@-]+$", max_length=255)]


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


class Policy(Spec):
    """The policy of a stage. The defaults are safe; loosening is explicit and recorded."""

    network: Network = "none"
    commands: tuple[ExecName, ...] | None = None
    """Programs the agent and all its children may execute: names looked up on the guest's PATH, or
    absolute paths; a path that ends in ``/`` allows everything below it. None: all of the image's own
    programs (``/usr/``), and nothing that the agent wrote itself."""
    rlimits: Rlimits = Rlimits()

"""voidbox-lab: AI agents in hardware-isolated micro-VMs, from a notebook.

    %load_ext voidbox_lab          # cell magics %%voidbox skill | stage, %voidbox run

    from voidbox_lab import Skill, VoidBox
    VoidBox("analyst", prompt="…", model="anthropic:claude-sonnet-4-5").run()

Names are loaded when first used: the vsock device process and the guest's codec import this package
and must not pay for the notebook.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voidbox_lab.api import Pipeline, Run, Skill, VoidBox, fan_out
    from voidbox_lab.errors import (
        BoxLost,
        Cancelled,
        CommandFailed,
        LimitExceeded,
        ProviderError,
        Unavailable,
        UserError,
        VoidboxError,
    )
    from voidbox_lab.spec import (
        AgentSkill,
        Budget,
        Caps,
        CliSkill,
        EgressLimits,
        HostMount,
        McpSkill,
        Model,
        OciSkill,
        Policy,
        Retry,
        Rlimits,
    )
    from voidbox_lab.widgets.dashboards import dashboard

__version__ = "0.1.0"

_HOME = {
    "Pipeline": "voidbox_lab.api",
    "Run": "voidbox_lab.api",
    "Skill": "voidbox_lab.api",
    "VoidBox": "voidbox_lab.api",
    "fan_out": "voidbox_lab.api",
    "dashboard": "voidbox_lab.widgets.dashboards",
    "AgentSkill": "voidbox_lab.spec",
    "Budget": "voidbox_lab.spec",
    "Caps": "voidbox_lab.spec",
    "CliSkill": "voidbox_lab.spec",
    "EgressLimits": "voidbox_lab.spec",
    "HostMount": "voidbox_lab.spec",
    "McpSkill": "voidbox_lab.spec",
    "Model": "voidbox_lab.spec",
    "OciSkill": "voidbox_lab.spec",
    "Policy": "voidbox_lab.spec",
    "Retry": "voidbox_lab.spec",
    "Rlimits": "voidbox_lab.spec",
    "BoxLost": "voidbox_lab.errors",
    "Cancelled": "voidbox_lab.errors",
    "CommandFailed": "voidbox_lab.errors",
    "LimitExceeded": "voidbox_lab.errors",
    "ProviderError": "voidbox_lab.errors",
    "Unavailable": "voidbox_lab.errors",
    "UserError": "voidbox_lab.errors",
    "VoidboxError": "voidbox_lab.errors",
}

__all__ = [
    "AgentSkill",
    "BoxLost",
    "Budget",
    "Cancelled",
    "Caps",
    "CliSkill",
    "CommandFailed",
    "EgressLimits",
    "HostMount",
    "LimitExceeded",
    "McpSkill",
    "Model",
    "OciSkill",
    "Pipeline",
    "Policy",
    "ProviderError",
    "Retry",
    "Rlimits",
    "Run",
    "Skill",
    "Unavailable",
    "UserError",
    "VoidBox",
    "VoidboxError",
    "__version__",
    "dashboard",
    "fan_out",
    "load_ipython_extension",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(ipython: Any) -> None:
    """Called by ``%load_ext voidbox_lab``."""
    importlib.import_module("voidbox_lab.magics").load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Called by ``%unload_ext voidbox_lab``."""
    importlib.import_module("voidbox_lab.magics").unload(ipython)

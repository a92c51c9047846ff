"""Runs declared as data: frozen pydantic models with digests. Knows nothing of machines."""

from voidbox_lab.spec.base import Name, Spec
from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.capability import AgentSkill, AnySkill, Capability, CliSkill, McpSkill, OciSkill, in_words
from voidbox_lab.spec.digest import canonical_json, digest_bytes, digest_file, digest_json
from voidbox_lab.spec.egress import Destination, EgressLimits, Network, parse_destination
from voidbox_lab.spec.failure import OnFailure, Retry, parse_failure
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.hostmount import HostMount
from voidbox_lab.spec.merge import Merge, Reducer, is_json, merged
from voidbox_lab.spec.model import Model, ModelSource
from voidbox_lab.spec.packages import OciMount, Rootfs, is_oci
from voidbox_lab.spec.pipeline import Pipeline
from voidbox_lab.spec.policy import Caps, Policy, Rlimits
from voidbox_lab.spec.run import (
    AT_REST,
    MAX_OUTPUT,
    TERMINAL,
    BoxFacts,
    CachedFrom,
    QueuePlace,
    RunRecord,
    RunSpec,
    RunState,
    Stage,
    StageRecord,
    StageState,
    Tokens,
    Trouble,
)
from voidbox_lab.spec.skill import Origin, Skill
from voidbox_lab.spec.validate import sentence, validated
from voidbox_lab.spec.voidbox import COMMAND, MIN_MEMORY_MB, VoidBoxSpec

__all__ = [
    "AT_REST",
    "COMMAND",
    "MAX_OUTPUT",
    "MIN_MEMORY_MB",
    "TERMINAL",
    "AgentSkill",
    "AnySkill",
    "BoxFacts",
    "Budget",
    "CachedFrom",
    "Capability",
    "Caps",
    "CliSkill",
    "Destination",
    "EgressLimits",
    "HostMount",
    "InputFile",
    "McpSkill",
    "Merge",
    "Model",
    "ModelSource",
    "Name",
    "Network",
    "OciMount",
    "OciSkill",
    "OnFailure",
    "Origin",
    "Pipeline",
    "Policy",
    "QueuePlace",
    "Reducer",
    "Retry",
    "Rlimits",
    "Rootfs",
    "RunRecord",
    "RunSpec",
    "RunState",
    "Skill",
    "Spec",
    "Stage",
    "StageRecord",
    "StageState",
    "Tokens",
    "Trouble",
    "VoidBoxSpec",
    "canonical_json",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "in_words",
    "is_json",
    "is_oci",
    "merged",
    "parse_destination",
    "parse_failure",
    "sentence",
    "validated",
]

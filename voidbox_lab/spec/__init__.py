"""Runs declared as data: frozen pydantic models with digests. Knows nothing of machines."""

from voidbox_lab.spec.base import Name, Spec
from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.digest import canonical_json, digest_bytes, digest_file, digest_json
from voidbox_lab.spec.failure import OnFailure, Retry, parse_failure
from voidbox_lab.spec.merge import Merge, Reducer, is_json, merged
from voidbox_lab.spec.model import Model, ModelSource
from voidbox_lab.spec.pipeline import Pipeline
from voidbox_lab.spec.policy import Policy, Rlimits
from voidbox_lab.spec.run import (
    AT_REST,
    MAX_OUTPUT,
    TERMINAL,
    BoxFacts,
    CachedFrom,
    InputFile,
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
from voidbox_lab.spec.skill import Skill
from voidbox_lab.spec.validate import sentence, validated
from voidbox_lab.spec.voidbox import COMMAND, MIN_MEMORY_MB, VoidBoxSpec

__all__ = [
    "AT_REST",
    "COMMAND",
    "MAX_OUTPUT",
    "MIN_MEMORY_MB",
    "TERMINAL",
    "BoxFacts",
    "Budget",
    "CachedFrom",
    "InputFile",
    "Merge",
    "Model",
    "ModelSource",
    "Name",
    "OnFailure",
    "Pipeline",
    "Policy",
    "QueuePlace",
    "Reducer",
    "Retry",
    "Rlimits",
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
    "is_json",
    "merged",
    "parse_failure",
    "sentence",
    "validated",
]

"""Runs declared as data: frozen pydantic models with digests. Knows nothing of machines."""

from voidbox_lab.spec.base import Name, Spec
from voidbox_lab.spec.digest import canonical_json, digest_bytes, digest_file, digest_json
from voidbox_lab.spec.model import Model, ModelSource
from voidbox_lab.spec.policy import Policy, Rlimits
from voidbox_lab.spec.run import (
    TERMINAL,
    BoxFacts,
    InputFile,
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
from voidbox_lab.spec.voidbox import MIN_MEMORY_MB, VoidBoxSpec

__all__ = [
    "MIN_MEMORY_MB",
    "TERMINAL",
    "BoxFacts",
    "InputFile",
    "Model",
    "ModelSource",
    "Name",
    "Policy",
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
    "sentence",
    "validated",
]

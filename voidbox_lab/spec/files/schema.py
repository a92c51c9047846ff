"""The JSON Schema of spec files, made of the models and their docstrings. ``voidbox validate --schema`` prints it.

It says what is well formed. That names exist, and files, no schema can say.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from voidbox_lab.spec.egress import EgressLimits
from voidbox_lab.spec.files import shape
from voidbox_lab.spec.files.fields import FLOW
from voidbox_lab.spec.files.skills import SkillSpec
from voidbox_lab.spec.hostmount import HostMount
from voidbox_lab.spec.merge import Reducer
from voidbox_lab.spec.policy import Caps, Rlimits
from voidbox_lab.spec.volume import Mount

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MOUNT_PATTERN = r"^[a-z0-9][a-z0-9_-]*:/[^:]+(:r[ow])?$"
HOST_PATTERN = r"^[^:]+:/[^:]+(:r[ow])?$"
PLACE = "docs/schema/voidbox-1.schema.json"
"""Where the repository keeps it."""


def schema() -> dict[str, Any]:
    """The schema of a spec file of any kind; JSON Schema 2020-12."""
    _, made = models_json_schema([(model, "validation") for model in shape.KINDS.values()])
    definitions: dict[str, Any] = made["$defs"]
    for name, definition in definitions.items():
        _describe(name, definition)
    for name, rules in _RULES.items():
        definitions[name]["allOf"] = rules
    definitions[FLOW] = _FLOW
    for name, pattern in (("Mount", MOUNT_PATTERN), ("HostMount", HOST_PATTERN)):
        definitions[name] = {"anyOf": [{"type": "string", "pattern": pattern}, definitions[name]]}
    kinds = [
        {"if": {"properties": {"kind": {"const": kind}}}, "then": {"$ref": f"#/$defs/{model.__name__}"}}
        for kind, model in shape.KINDS.items()
    ]
    whole = {
        "$schema": DIALECT,
        "title": "voidbox-lab spec file, version 1",
        "type": "object",
        "required": ["kind", "version"],
        "properties": {"kind": {"enum": list(shape.KINDS)}, "version": {"const": 1}},
        "allOf": kinds,
        "$defs": dict(sorted(definitions.items())),
    }
    closed: dict[str, Any] = _closed(whole)
    return closed


def _given(*names: str) -> dict[str, Any]:
    """All of `names` are there, and not empty."""
    return {"required": list(names), "properties": {name: {"not": {"type": "null"}} for name in names}}


def _any(*names: str) -> dict[str, Any]:
    return {"anyOf": [_given(name) for name in names]}


def _none(*names: str) -> dict[str, Any]:
    return {"not": {"anyOf": [{"required": [name]} for name in names]}}


_RETRY_ONCE = {"not": {"required": ["retry", "on_failure"], "properties": {
    "retry": {"not": {"type": "null"}},
    "on_failure": {"anyOf": [
        {"type": "string", "pattern": "^\\s*retry"},
        {"type": "object", **_given("retry")},
    ]},
}}}  # fmt: skip
_TOOLS = {"properties": {"skills": {"items": {
    "type": "object", "oneOf": [_given(kind) for kind in SkillSpec.TOOLS],
}}}}  # fmt: skip
"""Skills of commands."""
_WORK: list[dict[str, Any]] = [
    {"oneOf": [_given(name) for name in ("prompt", "prompt_file", "run", "command")]},
    {
        "if": _any("run", "command"),
        "then": {"allOf": [_none(*shape.WorkSpec.AGENT_ONLY), _TOOLS]},
        "else": {"allOf": [_given("model"), _none(*shape.WorkSpec.COMMAND_ONLY)]},
    },
    _RETRY_ONCE,
]
_RULES: dict[str, list[dict[str, Any]]] = {
    "AgentFile": [{"oneOf": [_given("prompt"), _given("prompt_file")]}, _given("model"), _RETRY_ONCE],
    "StageSpec": _WORK,
    "StepSpec": _WORK,
    "SandboxFile": [{"not": _given("run", "command")}, _RETRY_ONCE, _TOOLS],
    "SkillSpec": [
        {
            "oneOf": [
                {
                    **_given(kind, *(["name"] if kind in SkillSpec.NAMED else [])),
                    "propertyNames": {"enum": [kind, *others]},
                }
                for kind, others in SkillSpec.GOES_WITH.items()
            ]
        }
    ],
    "Policy": [
        {
            "if": {"properties": {"network": {"const": "none"}}},
            "then": {"properties": {"egress": {"maxItems": 0}}},
        },
        {
            "if": {"required": ["network"], "properties": {"network": {"const": "allowlist"}}},
            "then": {"required": ["egress"], "properties": {"egress": {"minItems": 1}}},
        },
    ],
    "MapSpec": [{"oneOf": [_given("items"), _given("file")]}],
}
"""What the models' own validators say about several fields together."""
_PART = {"$ref": f"#/$defs/{FLOW}"}
_FLOW = {
    "description": "Stages in sequence: an expression like 'a | [b, c]:text | d', or a list of names, of lists "
    "side by side, and of fan-outs with a reducer.",
    "anyOf": [
        {"type": "string", "pattern": "\\S"},
        {"type": "array", "minItems": 1, "items": _PART},
        {
            "type": "object",
            "properties": {
                "fan_out": {"type": "array", "minItems": 1, "items": _PART},
                "reduce": {"enum": list(get_args(Reducer))},
            },
            "required": ["fan_out"],
            "additionalProperties": False,
        },
    ],
}


def _closed(value: Any) -> Any:
    """`value` with no other keys than its patterns allow, without titles that only repeat names."""
    if isinstance(value, list):
        return [_closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    titled = "$schema" in value
    kept = {k: _closed(v) for k, v in value.items() if titled or k != "title" or not isinstance(v, str)}
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    if kept.get("$comment") == FLOW:
        del kept["$comment"]
        kept |= _PART
    return kept


def _describe(name: str, definition: dict[str, Any]) -> None:
    models: dict[str, Any] = vars(shape) | {
        model.__name__: model for model in (SkillSpec, Mount, HostMount, Rlimits, Caps, EgressLimits)
    }
    model = models[name]
    definition["description"] = inspect.cleandoc(model.__doc__ or "")
    told = {field: text for one in reversed(model.__mro__) for field, text in _docstrings(one).items()}
    for field, said in definition["properties"].items():
        if field in told:
            said["description"] = told[field]


def _docstrings(model: type) -> dict[str, str]:
    """The strings that stand below a class's fields. Python keeps them in its source only."""
    if not (issubclass(model, BaseModel) and model.__module__.startswith("voidbox_lab.")):
        return {}
    (definition,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = " ".join(below.value.value.split())
    return found

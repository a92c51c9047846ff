"""The types of fields in spec files: what may be written for each, and how JSON Schema says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from voidbox_lab.errors import UserError
from voidbox_lab.spec.base import Name
from voidbox_lab.spec.failure import MAX_BACKOFF_S
from voidbox_lab.spec.file import check_file_name
from voidbox_lab.spec.files.reading import Reading
from voidbox_lab.spec.files.units import DURATION_PATTERN, MEMORY_PATTERN, memory_mb, seconds
from voidbox_lab.spec.flow import Beside, Chain, Flow, parse_flow, reducer
from voidbox_lab.spec.hostmount import HostMount
from voidbox_lab.spec.model import Model, Provider
from voidbox_lab.spec.packages import PACKAGE_PATTERN, REFERENCE_PATTERN, ImageName, Package, Reference
from voidbox_lab.spec.remote import parse_remote
from voidbox_lab.spec.skill import words
from voidbox_lab.spec.voidbox import MIN_MEMORY_MB

NAME_PATTERN = r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$"
FILE_PATTERN = r"^(?!\.{1,2}$)[^/\u0000]{1,255}$"
MODEL_PATTERN = rf"^({'|'.join(get_args(Provider))}):[^\s]{{1,2000}}$"
IMAGE_PATTERN = rf"{NAME_PATTERN}|{REFERENCE_PATTERN}"
FLOW = "Flow"
"""The name of the flow's definition in the JSON Schema."""


class FileModel(BaseModel):
    """Base of what a spec file holds: closed, frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


@dataclass(frozen=True, eq=False)  # compared by identity: annotations must be hashable, and the schema is not
class OrShort:
    """In JSON Schema: `short` may be written instead of the whole."""

    short: dict[str, Any]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [self.short, handler(core)]}


def told(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`read` with its `UserError` as the `ValueError` that pydantic collects."""

    def reading(value: Any) -> Any:
        try:
            return read(value)
        except UserError as e:
            raise ValueError(e.message) from e

    return reading


def exists(look: Callable[[Reading, str], object]) -> AfterValidator:
    """The value names a file that `look` finds good, where there is a `Reading` to ask."""

    def check(value: str, info: ValidationInfo) -> str:
        reading = info.context
        if isinstance(reading, Reading):
            told(lambda name: look(reading, name))(value)
        return value

    return AfterValidator(check)


def _model(value: object) -> object:
    return Model.parse(value) if isinstance(value, str) else value


def _flow(value: object) -> Flow:
    return read_flow(value)


def read_flow(value: object, depth: int = 0) -> Flow:
    """A flow as an expression, as a list of parts in sequence, or, within such a list, a list side by side.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, str):
        return parse_flow(value)
    if isinstance(value, dict) and set(value) <= {"fan_out", "reduce"} and isinstance(value.get("fan_out"), list):
        by = value.get("reduce")
        return Beside(_parts(value["fan_out"], depth), None if by is None else reducer(str(by)))
    if isinstance(value, list):
        parts = _parts(value, depth)
        if depth:
            return Beside(parts)
        return parts[0] if len(parts) == 1 else Chain(parts)
    raise UserError(
        "a flow is an expression like 'a | [b, c] | d', or a list of names, of lists side by side, and of "
        "{fan_out: […], reduce: …}"
    )


def _parts(values: list[object], depth: int) -> tuple[Flow, ...]:
    if not values:
        raise UserError("a list in the flow is empty; put at least one stage into it")
    return tuple(read_flow(value, depth + 1) for value in values)


def _argv(value: object) -> object:
    return words(value) if isinstance(value, str) else value


def _remote(value: str) -> str:
    parse_remote(value)
    return value


def _rooted(source: str) -> str:
    return source if source.startswith("/") else f"/{source}"


def _from_here(value: Any, info: ValidationInfo) -> Any:
    """A mount whose folder is absolute: it is relative to the spec file."""
    reading = info.context if isinstance(info.context, Reading) else None
    absolute = told(reading.folder) if reading else _rooted
    if isinstance(value, str) and ":" in value:
        source, _, rest = value.partition(":")
        return f"{absolute(source)}:{rest}" if source else value
    if isinstance(value, dict) and isinstance(value.get("source"), str) and value["source"]:
        return {**value, "source": absolute(value["source"])}
    return value


def _no_bool(value: object) -> object:
    """True equals 1 in Python, and in a literal; in JSON it does not."""
    return str(value).lower() if isinstance(value, bool) else value


Version = Annotated[Literal[1], BeforeValidator(_no_bool)]
_NAME: dict[str, Any] = {"type": "string", "pattern": NAME_PATTERN}
StageName = Annotated[Name, WithJsonSchema(_NAME)]
FileName = Annotated[
    str, AfterValidator(check_file_name), WithJsonSchema({"type": "string", "pattern": FILE_PATTERN})
]
PathText = Annotated[str, Field(min_length=1, max_length=4096)]
InputPath = Annotated[PathText, exists(lambda reading, name: reading.input(name))]
PromptPath = Annotated[PathText, exists(lambda reading, name: reading.prompt(name))]
ItemsPath = Annotated[PathText, exists(lambda reading, name: reading.items(name))]
SkillPath = Annotated[PathText, exists(lambda reading, name: reading.skill(name))]
Memory = Annotated[
    int,
    Field(ge=MIN_MEMORY_MB, le=1 << 20),
    BeforeValidator(memory_mb),
    WithJsonSchema({
        "anyOf": [
            {"type": "integer", "minimum": MIN_MEMORY_MB, "maximum": 1 << 20},
            {"type": "string", "pattern": MEMORY_PATTERN},
        ]
    }),
]  # fmt: skip
"""MiB, or text such as ``1GB``."""
_LASTING: dict[str, Any] = {"type": "string", "pattern": DURATION_PATTERN}
Duration = Annotated[
    float,
    Field(gt=0, le=86400, allow_inf_nan=False),
    BeforeValidator(seconds),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 86400}, _LASTING]}),
]
"""Seconds, or text such as ``5m``."""
Backoff = Annotated[
    float,
    Field(ge=0, le=MAX_BACKOFF_S, allow_inf_nan=False),
    BeforeValidator(seconds),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": MAX_BACKOFF_S}, _LASTING]}),
]
ModelText = Annotated[
    Model, BeforeValidator(told(_model)), WithJsonSchema({"type": "string", "pattern": MODEL_PATTERN})
]
"""``PROVIDER:NAME``."""
PackageText = Annotated[Package, WithJsonSchema({"type": "string", "pattern": PACKAGE_PATTERN})]
ImageText = Annotated[ImageName, WithJsonSchema({"type": "string", "maxLength": 300, "pattern": IMAGE_PATTERN})]
ReferenceText = Annotated[
    Reference, WithJsonSchema({"type": "string", "maxLength": 300, "pattern": REFERENCE_PATTERN})
]
CommandLine = BeforeValidator(told(_argv))
"""A command may be written as a line, taken apart as a shell would."""
RemoteText = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(told(_remote))]
HostMountField = Annotated[HostMount, BeforeValidator(_from_here)]
"""FOLDER:PATH, with the folder relative to the spec file."""
FlowField = Annotated[Any, BeforeValidator(told(_flow)), WithJsonSchema({"$comment": FLOW})]
"""An expression, or the same as lists; a `Flow` once it is read. The schema's generator puts the definition in."""

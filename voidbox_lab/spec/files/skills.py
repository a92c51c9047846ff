"""A skill in a spec file, of any kind: one field says which, and the others go with it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from voidbox_lab.spec.capability import Argument, EnvName, EnvValue
from voidbox_lab.spec.files.fields import (
    CommandLine,
    FileModel,
    OrShort,
    PackageText,
    ReferenceText,
    RemoteText,
    SkillPath,
    StageName,
    told,
)
from voidbox_lab.spec.files.reading import Reading
from voidbox_lab.spec.packages import MAX_PACKAGES
from voidbox_lab.spec.policy import ExecName
from voidbox_lab.spec.remote import RemoteRef, parse_remote
from voidbox_lab.spec.skill import MAX_SKILL_BYTES
from voidbox_lab.spec.volume import MountPath

Listed = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
"""What a validator has seen is Python's, where a list is no tuple, and no more JSON's."""
Packages = Annotated[tuple[PackageText, ...], Field(max_length=MAX_PACKAGES), Listed]
Programs = Annotated[tuple[ExecName, ...], Field(max_length=256), Listed]
Tools = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=256), Listed]


def _skill(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


class SkillSpec(FileModel):
    """A skill. One of file, body, mcp, cli, agent, oci and remote says of what kind."""

    GOES_WITH: ClassVar[dict[str, tuple[str, ...]]] = {
        "file": ("name", "description"),
        "body": ("name", "description"),
        "mcp": ("name", "description", "packages", "env", "tools"),
        "cli": ("description", "packages", "commands", "body"),
        "agent": (),
        "oci": ("name", "description", "path"),
        "remote": ("name", "description", "revision"),
    }
    """Kind to the fields that go with it."""
    NAMED: ClassVar[tuple[str, ...]] = ("body", "mcp")
    """Kinds that need a name."""
    TOOLS: ClassVar[tuple[str, ...]] = ("cli", "oci")
    """Kinds that are for commands as well."""

    file: SkillPath | None = None
    """Path of a SKILL.md file, or of its directory with all that is in it, relative to this file."""
    name: StageName | None = None
    """Its name; a file has one of its own."""
    description: str | None = Field(None, max_length=1024)
    """One line for the agent: when to use the skill."""
    body: str | None = Field(None, min_length=1, max_length=MAX_SKILL_BYTES)
    """Its instructions, in Markdown, instead of a file; or how to use the programs of cli."""
    mcp: Annotated[
        Annotated[tuple[Argument, ...], Field(min_length=1, max_length=256)] | None,
        Listed,
        CommandLine,
        OrShort({"type": "string", "pattern": "\\S"}),
    ] = None
    """A server of the Model Context Protocol (stdio): its command, as a list or as a line."""
    packages: Packages = ()
    """What it needs in the box: deb:NAME, pypi:NAME==VERSION, npm:NAME@VERSION. Of cli by default deb:NAME."""
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=64)
    """The server's environment. Not for secrets."""
    tools: Tools | None = None
    """The server's tools that the agent is offered; default: all."""
    cli: StageName | None = None
    """The name of a command-line program, or of several."""
    commands: Programs = ()
    """The programs of cli, if they are not named as it is."""
    agent: StageName | None = None
    """The agent program that drives the stage."""
    oci: ReferenceText | None = None
    """An OCI image whose files are read-only in the box."""
    path: MountPath | None = None
    """Where in the box; default: /skills/NAME."""
    remote: RemoteText | None = None
    """owner/repo/path on GitHub, git+URL, or the URL of an archive."""
    revision: str | None = Field(None, max_length=200, validate_default=True)
    """The commit in full, or of an archive sha256:HEX; may stand in remote after an @ instead."""

    @property
    def kind(self) -> str:
        """The field that says what it is."""
        given = [name for name in self.GOES_WITH if getattr(self, name) is not None]
        return "cli" if given == ["body", "cli"] else given[0] if len(given) == 1 else ""

    @property
    def reference(self) -> RemoteRef:
        """Where a remote skill is."""
        return parse_remote(self.remote or "", revision=self.revision)

    @field_validator("revision")
    @classmethod
    def _pinned(cls, revision: str | None, info: ValidationInfo) -> str | None:
        if isinstance(remote := info.data.get("remote"), str):
            reading = info.context if isinstance(info.context, Reading) else Reading.nowhere()
            told(lambda text: reading.remote(parse_remote(text, revision=revision)))(remote)
        return revision

    @model_validator(mode="after")
    def _one_kind(self) -> SkillSpec:
        kind = self.kind
        if not kind:
            raise ValueError(f"a skill has one of {', '.join(self.GOES_WITH)}, which says of what kind it is")
        for name in sorted(self.model_fields_set - {kind, *self.GOES_WITH[kind]}):
            raise ValueError(f"{name} does not go with {kind}")
        if kind in self.NAMED and self.name is None:
            raise ValueError("a skill that is written here needs a name")
        return self


SkillField = Annotated[SkillSpec, BeforeValidator(_skill), OrShort({"type": "string", "minLength": 1})]


def check_tools(skills: tuple[SkillSpec, ...]) -> None:
    """`ValueError` for skills that only an agent can use."""
    for skill in skills:
        if skill.kind not in SkillSpec.TOOLS:
            raise ValueError(f"a skill of kind {skill.kind!r} is for agents, and this is a command")

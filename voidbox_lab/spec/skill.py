"""A skill that is knowledge: a SKILL.md file, with what lies beside it. See `capability` for the other kinds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from voidbox_lab.cards import Card, Shown
from voidbox_lab.errors import UserError
from voidbox_lab.spec import frontmatter
from voidbox_lab.spec.base import Frozen, Name, Spec
from voidbox_lab.spec.digest import digest_bytes
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.validate import validated

if TYPE_CHECKING:
    from voidbox_lab.spec.capability import AgentSkill, CliSkill, McpSkill, OciSkill

MAX_SKILL_BYTES = 1 << 20
MAX_SKILL_FILES = 256
MAX_FILES_BYTES = 64 << 20
"""Of a skill's other files together."""
SKILL_FILE = "SKILL.md"


def check_relative(path: str) -> str:
    """`path` if it stays below the directory it is relative to.

    Raises:
        ValueError: it does not, or cannot be a path.
    """
    parts = path.split("/")
    if any(p in {"", ".", ".."} for p in parts) or re.search(r"[\x00-\x1f\\]", path) or len(path.encode()) > 1000:
        raise ValueError(f"{path[:100]!r} is not a path below the skill's directory")
    if any(len(part.encode()) > 255 for part in parts):
        raise ValueError(f"a part of {path[:100]!r} is longer than 255 bytes")
    return path


RelativePath = Annotated[str, AfterValidator(check_relative)]


class SkillFile(InputFile):
    """A file beside a SKILL.md."""

    executable: bool = False


class Origin(Frozen):
    """Where a remote skill came from; the revision is exact, so that the same can be fetched again."""

    source: str = Field(max_length=1000)
    """The URL of a git repository or of an archive."""
    path: str = Field("", max_length=1000)
    """The skill's directory in it."""
    revision: str = Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64}|sha256:[0-9a-f]{64})$")
    """A git commit, or the digest of the archive."""


class Skill(Shown, Spec):
    """A declared capability: Markdown that tells the agent how to do something, and files that go with it.

    In a box it becomes ``skills/NAME/SKILL.md``, with `name` and `description` as its front matter. `mcp`, `cli`,
    `agent` and `oci` declare skills of the other kinds.
    """

    kind: Literal["inline", "file", "remote"] = "inline"
    name: Name
    description: str = Field(max_length=1024)
    body: str = Field(max_length=MAX_SKILL_BYTES)
    files: dict[RelativePath, SkillFile] = Field(default_factory=dict, max_length=MAX_SKILL_FILES)
    """What lies beside SKILL.md, by its path there; the bytes are artifacts with these digests."""
    origin: Origin | None = None
    _contents: dict[str, bytes] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Skill:
        if (self.kind == "remote") is not (self.origin is not None):
            raise ValueError("a remote skill, and no other, has an origin")
        if sum(file.size for file in self.files.values()) > MAX_FILES_BYTES:
            raise ValueError(f"the skill's files have more than {MAX_FILES_BYTES >> 20} MiB together")
        if SKILL_FILE in self.files:
            raise ValueError(f"{SKILL_FILE} is the skill itself, not a file of it")
        return self

    def __eq__(self, other: object) -> bool:
        # Whether its files' bytes are at hand does not make it another skill.
        return isinstance(other, Skill) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((self.name, self.body))

    @property
    def contents(self) -> Mapping[str, bytes]:
        """Digest to bytes of its files, where it was read here; a spec from elsewhere has digests only."""
        return self._contents

    def with_files(self, files: Mapping[str, tuple[bytes, bool]]) -> Skill:
        """This with files beside it: relative path to bytes, and whether they are to be executable.

        Raises:
            UserError: too many, too large, or one that cannot be there.
        """
        listed = {
            path: {"digest": digest_bytes(data), "size": len(data), "executable": executable}
            for path, (data, executable) in files.items()
        }
        skill = validated(type(self), **{**dict(self), "files": listed})
        skill._contents = {digest_bytes(data): data for data, _ in files.values()}
        return skill

    def renamed(self, name: str | None = None, description: str | None = None) -> Skill:
        """This under another name or description, where one is given."""
        given = {"name": name, "description": description}
        skill = validated(type(self), **{**dict(self), **{k: v for k, v in given.items() if v is not None}})
        skill._contents = dict(self._contents)
        return skill

    @classmethod
    def from_markdown(
        cls,
        text: str,
        *,
        name: str | None = None,
        description: str | None = None,
        kind: Literal["inline", "file", "remote"] = "inline",
        origin: Origin | None = None,
    ) -> Skill:
        """A skill from Markdown with optional YAML front matter; arguments win over the front matter.

        Raises:
            UserError: the front matter is not YAML, a name is missing, or a value is out of range.
        """
        meta, content = frontmatter.split(text)
        name = name or meta.get("name")
        if not name:
            raise UserError("The skill has no name; give one as an argument or as 'name:' in its front matter.")
        described = description if description is not None else meta.get("description", "")
        if not content:
            raise UserError(f"The skill {name!r} is empty; write its instructions in Markdown.")
        body = content + "\n"
        return validated(cls, kind=kind, name=name, description=described, body=body, origin=origin)

    @classmethod
    def file(cls, path: str | Path, *, name: str | None = None, description: str | None = None) -> Skill:
        """A skill from a SKILL.md file; or from a directory that holds one, with all other files in it.

        Raises:
            UserError: no such file, too large, or not a skill.
        """
        path = Path(path).expanduser()
        return read_skill(path, kind="file", name=name, description=description)

    @classmethod
    def inline(cls, name: str, text: str, *, description: str | None = None) -> Skill:
        """A skill from Markdown, as `from_markdown`."""
        return cls.from_markdown(text, name=name, description=description)

    @staticmethod
    def remote(
        where: str,
        *,
        path: str | None = None,
        revision: str | None = None,
        name: str | None = None,
        description: str | None = None,
    ) -> Skill:
        """A skill from a git repository or an archive, fetched now; see `voidbox_lab.spec.remote` for what `where`
        may be. Its `origin` has the exact revision; the same is fetched again where that is given.

        Raises:
            UserError: no such repository, revision or skill.
            ProviderError: the other side cannot be reached.
            LimitExceeded: it is too large, or takes too long.
        """
        from voidbox_lab.spec.remote import fetched, parse_remote

        return fetched(parse_remote(where, path=path, revision=revision)).renamed(name, description)

    @staticmethod
    def mcp(
        name: str,
        command: str | Sequence[str],
        *,
        packages: str | Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        tools: Iterable[str] | None = None,
        description: str = "",
    ) -> McpSkill:
        """A server of the Model Context Protocol: ``Skill.mcp("clock", "mcp-server-time",
        packages="pypi:mcp-server-time")``. `command` may be a line, taken apart as a shell would."""
        from voidbox_lab.spec.capability import McpSkill

        return validated(
            McpSkill,
            name=name,
            command=words(command) if isinstance(command, str) else tuple(command),
            packages=_several(packages),
            env=dict(env or {}),
            tools=None if tools is None else _several(tools),
            description=description,
        )

    @staticmethod
    def cli(
        name: str, *packages: str, commands: str | Iterable[str] = (), description: str = "", body: str = ""
    ) -> CliSkill:
        """Command-line programs: ``Skill.cli("jq")``, ``Skill.cli("http", "pypi:httpie")``. Without `packages` the
        distribution's one of this name; `body` says how to use them, in Markdown."""
        from voidbox_lab.spec.capability import CliSkill

        return validated(
            CliSkill,
            name=name,
            packages=packages or (f"deb:{name}",),
            commands=_several(commands),
            description=description,
            body=body,
        )

    @staticmethod
    def agent(name: str) -> AgentSkill:
        """Which agent CLI drives the stage: ``Skill.agent("claude-code")``."""
        from voidbox_lab.spec.capability import AgentSkill

        return validated(AgentSkill, name=name)

    @staticmethod
    def oci(image: str, *, path: str | None = None, name: str | None = None, description: str = "") -> OciSkill:
        """The files of an OCI image, read-only at `path` (else ``/skills/NAME``): ``Skill.oci("node:22-slim")``.
        Without a `name` the last part of its repository's."""
        from voidbox_lab.spec.capability import OciSkill

        name = name or image_name(image)
        return validated(OciSkill, name=name, image=image, path=path, description=description)

    def to_markdown(self) -> str:
        """The SKILL.md text, front matter included."""
        head = yaml.safe_dump({"name": self.name, "description": self.description}, sort_keys=False)
        return f"---\n{head}---\n\n{self.body}"

    def _card(self) -> Card:
        origin = self.origin
        facts = (
            ("description", self.description),
            ("from", f"{origin.source} {origin.path}".strip() if origin else ""),
            ("revision", origin.revision if origin else ""),
            ("beside it", ", ".join(f"{path} ({file.size:,} bytes)" for path, file in self.files.items())),
            ("text", f"{len(self.body):,} characters"),
        )
        return Card(
            "skill", self.name, ((self.kind, self.kind),), facts, texts=((SKILL_FILE, self.to_markdown()),)
        )


def words(line: str) -> tuple[str, ...]:
    """A command line's words, as a shell takes it apart.

    Raises:
        UserError: a quotation mark has no partner.
    """
    try:
        return tuple(shlex.split(line))
    except ValueError as e:
        raise UserError(f"In the command {line[:100]!r} a quotation mark has no partner; add it.") from e


def image_name(image: str) -> str:
    """The last part of an OCI image's repository, as a name."""
    last = image.partition("@")[0].rsplit("/", 1)[-1].partition(":")[0]
    return last.lower().replace(".", "-")


def _several(values: str | Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def read_skill(
    path: Path,
    *,
    kind: Literal["file", "remote"],
    name: str | None = None,
    description: str | None = None,
    origin: Origin | None = None,
) -> Skill:
    """The skill at `path`: a Markdown file alone, or a directory with a SKILL.md and what lies beside it.

    Symbolic links and hidden files and directories are left out.

    Raises:
        UserError: no such file, too large, or not a skill.
    """
    directory = path if path.is_dir() else None
    path = path / SKILL_FILE if directory else path
    try:
        size = path.stat().st_size
        if size > MAX_SKILL_BYTES:
            raise UserError(f"The skill file {path} has {size} bytes; the limit is {MAX_SKILL_BYTES}.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"The skill file {path} cannot be read ({e}); check the path.") from e
    stem = path.parent.name if path.name == SKILL_FILE else path.stem
    fallback = "".join(c if c.isalnum() else "-" for c in stem.lower()).strip("-")
    name = name or frontmatter.split(text)[0].get("name") or fallback
    skill = Skill.from_markdown(text, name=name, description=description, kind=kind, origin=origin)
    return skill.with_files(_beside(directory)) if directory else skill


def _beside(directory: Path) -> dict[str, tuple[bytes, bool]]:
    """The files of a skill's directory: relative path to bytes, and whether they are executable."""
    found: dict[str, tuple[bytes, bool]] = {}
    total = 0
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        inside = [directory.joinpath(*relative.parts[: n + 1]) for n in range(len(relative.parts))]
        if any(part.startswith(".") for part in relative.parts) or any(p.is_symlink() for p in inside):
            continue
        if not path.is_file() or relative.as_posix() == SKILL_FILE:
            continue
        try:
            total += path.stat().st_size
            if total > MAX_FILES_BYTES or len(found) >= MAX_SKILL_FILES:
                raise UserError(
                    f"The skill in {directory} has more than {MAX_SKILL_FILES} files or "
                    f"{MAX_FILES_BYTES >> 20} MiB; keep only what the agent needs beside its SKILL.md."
                )
            found[relative.as_posix()] = path.read_bytes(), bool(path.stat().st_mode & 0o111)
        except OSError as e:
            raise UserError(f"The skill's file {path} cannot be read ({e.strerror}); check it.") from e
    return found

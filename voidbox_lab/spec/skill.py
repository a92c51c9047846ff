"""A skill: procedural knowledge in the shape of a SKILL.md file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import frontmatter
import yaml
from pydantic import Field

from voidbox_lab.errors import UserError
from voidbox_lab.spec.base import Name, Spec
from voidbox_lab.spec.validate import validated

MAX_SKILL_BYTES = 1 << 20


class Skill(Spec):
    """A declared capability: Markdown that tells the agent how to do something.

    In a box it becomes ``skills/NAME/SKILL.md``, with `name` and `description` as its front matter.
    """

    kind: Literal["inline", "file"] = "inline"
    name: Name
    description: str = Field(max_length=1024)
    body: str = Field(max_length=MAX_SKILL_BYTES)

    @classmethod
    def from_markdown(
        cls,
        text: str,
        *,
        name: str | None = None,
        description: str | None = None,
        kind: Literal["inline", "file"] = "inline",
    ) -> Skill:
        """A skill from Markdown with optional YAML front matter; arguments win over the front matter.

        Raises:
            UserError: the front matter is not YAML, a name is missing, or a value is out of range.
        """
        try:
            post = frontmatter.loads(text)
        except yaml.YAMLError as e:
            where = getattr(e, "problem_mark", None)
            line = f" at line {where.line + 2}" if where else ""
            raise UserError(f"The skill's front matter is not valid YAML{line}; mend it or remove it.") from e
        meta = post.metadata
        name = name or (str(meta["name"]) if "name" in meta else None)
        if not name:
            raise UserError("The skill has no name; give one as an argument or as 'name:' in its front matter.")
        described = description if description is not None else str(meta.get("description", ""))
        if not post.content.strip():
            raise UserError(f"The skill {name!r} is empty; write its instructions in Markdown.")
        return validated(cls, kind=kind, name=name, description=described, body=post.content.strip() + "\n")

    @classmethod
    def file(cls, path: str | Path, *, name: str | None = None, description: str | None = None) -> Skill:
        """A skill from a SKILL.md file, or from a directory that holds one.

        Raises:
            UserError: no such file, too large, or not a skill.
        """
        path = Path(path).expanduser()
        path = path / "SKILL.md" if path.is_dir() else path
        try:
            size = path.stat().st_size
            if size > MAX_SKILL_BYTES:
                raise UserError(f"The skill file {path} has {size} bytes; the limit is {MAX_SKILL_BYTES}.")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"The skill file {path} cannot be read ({e}); check the path.") from e
        stem = path.parent.name if path.name == "SKILL.md" else path.stem
        fallback = "".join(c if c.isalnum() else "-" for c in stem.lower()).strip("-")
        has_name = name or "name" in frontmatter.loads(text).metadata
        return cls.from_markdown(text, name=name if has_name else fallback, description=description, kind="file")

    def to_markdown(self) -> str:
        """The SKILL.md text, front matter included."""
        head = yaml.safe_dump({"name": self.name, "description": self.description}, sort_keys=False)
        return f"---\n{head}---\n\n{self.body}"

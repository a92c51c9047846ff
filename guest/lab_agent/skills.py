"""Skills: ``SKILL.md`` files under ``~/.claude/skills/NAME/``.

Their names and descriptions go into the system prompt; the model reads a body when it needs it.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    import re

MAX_SKILLS = 64
MAX_HEAD = 16 * 1024
MAX_DESCRIPTION = 1024
_ESCAPE = r"(?s)\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(\n\s*)|(.))"
_NAMED = {"n": "\n", "t": "\t", "0": "\0", "r": "\r", "_": "\xa0", "e": "\x1b"}


class Skill:
    """A skill that is there."""

    def __init__(self, name: str, description: str, path: str) -> None:
        self.name, self.description, self.path = name, description, path


def find(home: str) -> list[Skill]:
    """The skills under `home`, by name. What cannot be read is left out."""
    root = os.path.join(home, ".claude", "skills")
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return []
    found = []
    for name in names[:MAX_SKILLS]:
        path = os.path.join(root, name, "SKILL.md")
        try:
            with open(path, encoding="utf-8", errors="replace") as f:
                head = front_matter(f.read(MAX_HEAD))
        except OSError:
            continue
        found.append(Skill(head.get("name", name), head.get("description", "")[:MAX_DESCRIPTION], path))
    return found


def front_matter(text: str) -> dict[str, str]:
    """The top-level strings of a YAML front matter: plain, quoted, folded over lines, or block scalars.

    The part of YAML that SKILL.md files use; lists and maps are passed over.
    """
    lines = text.split("\n")
    if not lines or lines[0].strip() != "---":
        return {}
    values: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:]:
        if line.rstrip() in {"---", "..."}:
            return {k: _scalar(v) for k, v in values.items()}
        name, colon, rest = line.partition(":")
        if colon and name.strip() == name and name and not name.startswith(("#", "-", '"', "'")):
            key = name
            values[key] = [rest.strip()]
        elif key:
            values[key].append(line.strip())
    return {}


def _scalar(lines: list[str]) -> str:
    first = lines[0]
    if first[:1] in {"|", ">"}:
        return ("\n" if first[0] == "|" else " ").join(lines[1:]).strip()
    if first.startswith('"'):
        import re  # an expensive one, and most descriptions are plain

        text = "\n".join(lines).rstrip()
        text = text[1:-1] if text.endswith('"') else text[1:]
        return re.sub(_ESCAPE, _unescape, re.sub(r"(?<!\\)\n", " ", text))
    text = " ".join(line for line in lines if line)
    if first.startswith("'"):
        return text[1:].removesuffix("'").replace("''", "'")
    return text.split(" #")[0].strip()


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code:
        return chr(min(int(code, 16), 0x10FFFF))
    return "" if match[4] else _NAMED.get(match[5], match[5])

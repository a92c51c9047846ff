"""The front matter of a SKILL.md: its name and description as text. Not for anything else that YAML could be.

Composed, and never constructed, by PyYAML's own Python: there libyaml would take the whole process along where
values are nested deep enough, and a scalar may stand for a number or date that cannot be made.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from voidbox_lab.errors import UserError

FIELDS = ("name", "description")
MAX_BYTES = 16 << 10
_FENCE = re.compile(r"^-{3,}\s*$", re.MULTILINE)
_NULL = "tag:yaml.org,2002:null"


def split(text: str) -> tuple[dict[str, str], str]:
    """Those of `FIELDS` that `text` begins with, as they are written there, and the Markdown below.

    Raises:
        UserError: what stands between its lines of dashes is no front matter that is read here.
    """
    text = text.strip()
    parts = _FENCE.split(text, 2) if _FENCE.match(text) else []
    if len(parts) < 3:
        return {}, text
    _, head, body = parts
    if len(head.encode(errors="replace")) > MAX_BYTES:
        raise UserError(f"The skill's front matter has more than {MAX_BYTES >> 10} KiB; keep it short.")
    return _fields(head), body.strip()


def _fields(head: str) -> dict[str, str]:
    try:
        root = yaml.compose(head, _Composer)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as e:
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None)
        # The first line is what is left of that with the dashes.
        line = f" at line {mark.line + 1}" if mark else ""
        why = f" ({problem})" if problem else ""
        raise UserError(f"The skill's front matter is not valid YAML{line}{why}; mend it or remove it.") from e
    found = {}
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode) or key.value not in FIELDS or value.tag == _NULL:
            continue
        if not isinstance(value, yaml.ScalarNode):
            raise UserError(f"The {key.value} in the skill's front matter is a list or mapping; write one text.")
        found[key.value] = value.value
    return found


class _Composer(yaml.SafeLoader):
    """Without anchors and aliases, by which a few bytes stand for many."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases are not read here", event.start_mark
            )
        return super().compose_node(parent, index)

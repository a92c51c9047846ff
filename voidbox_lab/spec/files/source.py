"""YAML and JSON text as plain data that knows where each value stands.

YAML by the 1.2 core schema: ``yes``, ``on``, ``12:30`` and ``2024-01-01`` are text. Keys are text whatever they
look like. No tags, no merge keys, no key twice, and bounds on size, depth and what aliases expand to.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from voidbox_lab.errors import UserError
from voidbox_lab.spec.files.problems import Loc, Problem, SpecFileError, dotted

MAX_BYTES = 512 * 1024
"""Largest spec file; long prompts and data have files of their own."""
MAX_VALUES = 50_000
"""Most values after aliases are expanded."""
MAX_DEPTH = 48
Place = tuple[int, int]
"""Line and column, from 1 on."""
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Document:
    """A file's data, and the places of its keys and values."""

    path: Path
    data: Any
    keys: dict[Loc, Place] = field(default_factory=dict)
    values: dict[Loc, Place] = field(default_factory=dict)

    def problem(self, loc: Loc, message: str, *, at_key: bool = False) -> Problem:
        """A problem of the value at `loc`; if there is none, at the place of what should hold it.

        Args:
            at_key: its key is what is wrong.
        """
        known = loc
        while known and known not in self.values:
            known = known[:-1]
        # What a mapping lacks is best said beside its own key: its value begins with another field's.
        holds = known != loc or self._is_collection(known)
        place = (self.keys if at_key or holds else self.values).get(known) or self.values.get(known, (1, 1))
        return Problem(*place, dotted(loc), message)

    def _is_collection(self, loc: Loc) -> bool:
        value = self.data
        for part in loc:
            value = value[part]
        return isinstance(value, dict | list)


def load(path: Path) -> Document:
    """The data in the file at `path`: JSON if its name ends in ``.json``, else YAML.

    Raises:
        SpecFileError: it is not well formed, or beyond a bound.
        UserError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise UserError(f"The spec file {path} cannot be read ({e.strerror}); check the path.") from e
    if len(raw) > MAX_BYTES:
        raise UserError(
            f"The spec file {path} has more than {MAX_BYTES >> 10} KiB; move prompts and data out of it."
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        before = raw[: e.start].decode("utf-8-sig", errors="replace")
        raise SpecFileError(
            path, [Problem(*_place(before), "", "this is not UTF-8 text; save it as UTF-8")]
        ) from e
    return parse(path, text)


def parse(path: Path, text: str) -> Document:
    """As `load`, of text that was in the file at `path`."""
    if path.suffix == ".json":
        text = _checked_json(path, text)
    try:
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        said = " ".join(filter(None, [e.context and f"{e.context}:", e.problem])) or "it cannot be read"
        raise SpecFileError(path, [Problem(*place, "", f"this is not YAML that is read here: {said}")]) from e
    except yaml.reader.ReaderError as e:
        message = f"the character U+{ord(text[e.position]):04X} has no place here; remove it"
        raise SpecFileError(path, [Problem(*_place(text[: e.position]), "", message)]) from e
    except RecursionError as e:
        raise SpecFileError(path, [_too_deep((1, 1), ())]) from e
    if root is None:
        raise SpecFileError(path, [Problem(1, 1, "", "the file is empty; begin with 'kind:' and 'version: 1'")])
    reading = _Reading()
    document = Document(path, reading.value(root, ()), reading.keys, reading.values)
    if reading.problems:
        raise SpecFileError(path, reading.problems)
    return document


class _Loader(yaml.SafeLoader):
    """Composes nodes; scalars by YAML 1.2's core schema (section 10.3.2), without infinities, and no tags."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - as the base class has it

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            message = f"the tag {tag!r} is not read here; write plain values"
            raise yaml.composer.ComposerError(None, None, message, event.start_mark)
        return super().compose_node(parent, index)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


class _Reading:
    """Turns nodes into data and notes their places and what is wrong with them."""

    def __init__(self) -> None:
        self.keys: dict[Loc, Place] = {}
        self.values: dict[Loc, Place] = {}
        self.problems: list[Problem] = []
        self._count = 0
        self._full = False

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        place = _start(node)
        self.values[loc] = place
        self._count += 1
        if self._count > MAX_VALUES:
            if not self._full:
                self._full = True
                self.problems.append(
                    Problem(*place, dotted(loc), f"the file has more than {MAX_VALUES} values, aliases expanded")
                )
            return None
        if len(loc) > MAX_DEPTH:
            # An alias within what it names ends here as well.
            self.problems.append(_too_deep(place, loc[:MAX_DEPTH]))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*loc, i)) for i, item in enumerate(node.value) if not self._full]
        try:
            return _scalar(node)
        except ValueError as e:
            self.problems.append(Problem(*place, dotted(loc), str(e)))
            return None

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if self._full:
                break
            place = _start(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(*place, dotted(loc), "a key here is a list or a mapping; use text"))
                continue
            try:
                key = _text(key_node.value)
            except ValueError as e:
                self.problems.append(Problem(*place, dotted(loc), str(e)))
                continue
            if key in found:
                first = self.keys[*loc, key]
                message = f"this key stands here already, in line {first[0]}; keep one of them"
                self.problems.append(Problem(*place, dotted((*loc, key)), message))
                continue
            self.keys[*loc, key] = place
            found[key] = self.value(value_node, (*loc, key))
        return found


def _scalar(node: yaml.Node) -> str | int | float | bool | None:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            if len(text) > 400:
                raise ValueError("this number is too long; put it in quotes if it is text")
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text[2:] if base != 10 else text, base)
        case "float":
            number = float(text)
            if not math.isfinite(number):
                raise ValueError("this number is too large; put it in quotes if it is text")
            return number
    return _text(text)


def _text(text: str) -> str:
    """JSON writes characters beyond U+FFFF as two escapes, which YAML reads as two characters, here one."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(r"this text has half of a character in it (a lone \ud800 to \udfff); remove it") from None


def _checked_json(path: Path, text: str) -> str:
    """`text` if it is JSON, so written that it means the same in YAML."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number in JSON")

    try:
        json.loads(text, parse_constant=refuse, parse_int=str)
    except json.JSONDecodeError as e:
        raise SpecFileError(path, [Problem(e.lineno, e.colno, "", f"this is not JSON: {e.msg}")]) from e
    except ValueError as e:
        raise SpecFileError(path, [Problem(1, 1, "", f"this is not JSON: {e}")]) from e
    except RecursionError as e:
        raise SpecFileError(path, [_too_deep((1, 1), ())]) from e
    # In JSON a tab stands between values only; these three may stand in text, where YAML would fold them.
    text = text.replace("\t", " ")
    for character in "\x85\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _too_deep(place: Place, loc: Loc) -> Problem:
    return Problem(*place, dotted(loc), f"values are nested more than {MAX_DEPTH} deep here; flatten them")


def _start(node: yaml.Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _place(before: str) -> Place:
    """The place right after `before`."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1

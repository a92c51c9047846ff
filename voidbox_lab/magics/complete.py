"""Tab completion for the magics: subcommands, options, names of stages and skills, models, files by IPython."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from voidbox_lab.magics.arguments import CELL, LINE
from voidbox_lab.magics.registry import Registry
from voidbox_lab.spec import Budget, OnFailure
from voidbox_lab.spec.model import Provider

SCRIPTED = ("quickstart",)
"""Scripted models that ship with the gateway."""
MODELS = tuple(f"scripted:{name}" for name in SCRIPTED) + tuple(
    f"{p}:" for p in get_args(Provider) if p != "scripted"
)
AGENTS = ("lab-agent", "claude-code", "codex")
PACKAGES = ("deb:", "pypi:", "npm:")
VALUES = {
    "--model": list(MODELS),
    "--agent": list(AGENTS),
    "--budget": [f"{name}=" for name in Budget.model_fields],
    "--on-failure": [*get_args(OnFailure), "retry("],
    "--cli": list(PACKAGES),
    "--package": list(PACKAGES),
}
"""Option to what may follow it."""


def matcher(
    registry: Registry, runs: Callable[[], Iterable[str]]
) -> Callable[[CompletionContext], SimpleMatcherResult]:
    """A matcher for ``Completer.custom_matchers`` over what `registry` holds and the ids that `runs` gives."""

    @context_matcher(identifier="voidbox")  # type: ignore[untyped-decorator]
    def match(context: CompletionContext) -> SimpleMatcherResult:
        line = context.text_until_cursor
        found = candidates(line, registry, runs())
        # IPython's token starts after the last delimiter, ':' among them; a candidate replaces the token only.
        word = "" if not line or line[-1].isspace() else line.split()[-1]
        skip = len(word) - len(context.token) if word.endswith(context.token) else 0
        completions = [SimpleCompletion(c[skip:], type="param") for c in found if c.startswith(word)]
        # Files stay IPython's business, so nothing is suppressed unless there is something to say.
        return SimpleMatcherResult(completions=completions, suppress=bool(completions))

    return match  # type: ignore[no-any-return]


def candidates(line: str, registry: Registry, runs: Iterable[str]) -> list[str]:
    """What may stand at the end of `line`, the text up to the cursor; the last word may be half written."""
    head, magic, rest = (
        line.rpartition("%%voidbox ") if line.lstrip().startswith("%%") else line.rpartition("%voidbox ")
    )
    if not magic or (head.strip() and not head.rstrip().endswith("=")):
        return []
    known: dict[str, Any] = CELL if magic.startswith("%%") else LINE
    words = rest.split()
    before = words if not rest or rest[-1].isspace() else words[:-1]
    if not before:
        return list(known)
    name = before[0]
    if name not in known:
        return []
    options = known[name]().options
    previous = before[-1]
    if previous in options and options[previous].nargs != 0:
        choices = options[previous].choices
        if choices:
            return list(choices)
        return list(registry.skills) if previous == "--skill" else VALUES.get(previous, [])
    free = {
        "run": list(registry.stages),
        "skill": list(registry.skills),
        **{name: list(runs) for name in ("attach", "retry", "cancel", "pause", "resume")},
    }
    return [*free.get(name, []), *options]

"""How errors leave a magic: as exceptions, so that automation sees them, shown as one sentence."""

from __future__ import annotations

from voidbox_lab.errors import VoidboxError
from voidbox_lab.widgets.text import one_line

_RED, _RESET = "\x1b[31m", "\x1b[0m"
MAX = 2000
"""Longest message shown, in characters; it may quote a guest."""


def shown_as_sentence(error: VoidboxError, *, colour: bool) -> VoidboxError:
    """`error`, which IPython will show as its type and message instead of a traceback.

    The hook is IPython's own (``_render_traceback_``, looked up on the value). Causes are cut off: IPython
    prints whole exception groups as soon as one is anywhere in the context.
    """
    name = type(error).__name__
    text = f"{f'{_RED}{name}{_RESET}' if colour else name}: {one_line(error.message, MAX)}"
    error._render_traceback_ = lambda: [text]  # type: ignore[attr-defined]
    error.__cause__ = error.__context__ = None
    return error

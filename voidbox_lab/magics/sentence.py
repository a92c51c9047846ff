"""How errors leave a magic: as exceptions, so that automation sees them, shown as one sentence."""

from __future__ import annotations

from voidbox_lab import errors
from voidbox_lab.errors import VoidboxError
from voidbox_lab.spec.run import RunRecord, Trouble
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


def failure(record: RunRecord) -> VoidboxError | None:
    """Why `record` did not succeed, as the error of its kind; None if it did."""
    if record.state == "succeeded":
        return None
    for stage in record.stages.values():
        # The one the run failed for: others may have failed without harm.
        if stage.state == "failed" and stage.trouble is not None and stage.trouble == record.trouble:
            return _error(stage.trouble, f"Stage {stage.name!r} of run {record.id} failed: ")
    if record.trouble is not None:
        return _error(record.trouble, f"Run {record.id}: ")
    if record.state == "cancelled":
        return errors.Cancelled(f"The run {record.id} was cancelled.")
    return errors.ProviderError(f"The run {record.id} ended as {record.state} without saying why.")


def _error(trouble: Trouble, prefix: str) -> VoidboxError:
    return errors.from_dict({**trouble.model_dump(), "message": prefix + trouble.message})

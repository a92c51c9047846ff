"""Why a run did not succeed, as the error of its kind."""

from __future__ import annotations

from voidbox_lab.errors import Cancelled, ProviderError, VoidboxError, from_dict
from voidbox_lab.spec import RunRecord, Trouble


def failure(record: RunRecord) -> VoidboxError | None:
    """Why `record` did not succeed, naming the stage that it failed for; None if it did."""
    if record.state == "succeeded":
        return None
    for stage in record.stages.values():
        # The one the run failed for: others may have failed without harm.
        if stage.state == "failed" and stage.trouble is not None and record.trouble in (None, stage.trouble):
            return _error(stage.trouble, f"Stage {stage.name!r} of run {record.id} failed: ")
    if record.trouble is not None:
        return _error(record.trouble, f"Run {record.id}: ")
    if record.state == "cancelled":
        return Cancelled(f"The run {record.id} was cancelled.")
    return ProviderError(f"The run {record.id} ended as {record.state} without saying why.")


def _error(trouble: Trouble, prefix: str) -> VoidboxError:
    return from_dict({**trouble.model_dump(), "message": prefix + trouble.message})

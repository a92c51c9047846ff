"""A stage's failure domain: what its failure means for the rest of the run, and how often it is tried."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from voidbox_lab.errors import UserError
from voidbox_lab.spec.base import Spec
from voidbox_lab.spec.validate import validated

OnFailure = Literal["fail", "skip", "continue"]
"""``fail``: the run fails, stages that need this one are skipped, its siblings go on. ``skip``: the same, but the
run may still succeed. ``continue``: stages that need this one run without its output."""

MAX_BACKOFF_S = 3600.0
_RETRY = re.compile(r"retry\(\s*(\d+)\s*(?:,\s*([\d.]+)\s*s?\s*)?\)")


class Retry(Spec):
    """How often a stage that failed is tried again, in a fresh box each time.

    Host and command failures and time-outs are tried again; user errors, spent budgets and cancellations are not.
    """

    n: int = Field(ge=1, le=20)
    """Attempts after the first one."""
    backoff_s: float = Field(1.0, ge=0, le=MAX_BACKOFF_S)
    """Seconds before the second attempt; doubled before each further one, up to an hour."""

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (1, 2, …) failed."""
        return min(self.backoff_s * 2.0 ** (attempt - 1), MAX_BACKOFF_S)


def parse_failure(text: str) -> tuple[OnFailure, Retry | None]:
    """``fail``, ``skip``, ``continue``, ``retry(N)``, ``retry(N, BACKOFF_S)``, or a retry and what then:
    ``retry(2, 5) continue``.

    Raises:
        UserError: something else.
    """
    retry = None
    rest = text.strip()
    if found := _RETRY.match(rest):
        retry = validated(Retry, n=found[1], **({"backoff_s": found[2]} if found[2] else {}))
        rest = rest[found.end() :].strip(" ,;")
    match rest:
        case "" if retry is not None:
            return "fail", retry
        case "fail" | "skip" | "continue":
            return rest, retry
    raise UserError(
        f"The failure domain {text!r} is not known; write fail, skip, continue or retry(N, SECONDS), "
        "or a retry and what then, as in 'retry(2, 5) continue'."
    )

"""What ends a stage or a run besides itself: spent budgets, lost needs. Pure; the words are here, once."""

from __future__ import annotations

from dataclasses import dataclass

from voidbox_lab.spec import Budget, Trouble

BUDGET = "budget"
"""The cause of every `Trouble` for a spent budget."""
LOST = Trouble(kind="provider", message="The stage ended without saying why; please report it.", cause="internal")


@dataclass(frozen=True)
class Spent:
    """What was metered."""

    usd: float | None = 0.0
    """Dollars at list price; None: at least one call had no known price."""
    tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Spent(usd, self.tokens + other.tokens)


def left(budget: Budget, spent: Spent) -> Budget:
    """What is left of dollars and tokens; None: unbounded. Never negative, also where it was overshot."""
    return Budget.model_construct(
        usd=None if budget.usd is None else 0.0 if spent.usd is None else max(0.0, budget.usd - spent.usd),
        tokens=None if budget.tokens is None else max(0, budget.tokens - spent.tokens),
        seconds=budget.seconds,
    )


def overspent(budget: Budget, spent: Spent, stage: str | None) -> Trouble | None:
    """Why the stage, or for None the run, must stop; None if it need not."""
    who = f"Stage {stage!r}" if stage is not None else "The run"
    if budget.usd is not None and spent.usd is None:
        return _spent(
            f"{who} has a budget of ${budget.usd:g}, and a model it called has no known price, so that cannot be "
            "kept; bound its tokens instead.",
            "usd",
            budget.usd,
            "$",
            stage,
        )
    if budget.usd is not None and spent.usd is not None and spent.usd > budget.usd:
        said = f"{who} was stopped: it spent ${spent.usd:.4f} of its budget of ${budget.usd:g}; give it more."
        return _spent(said, "usd", budget.usd, "$", stage)
    if budget.tokens is not None and spent.tokens > budget.tokens:
        said = f"{who} was stopped: it used {spent.tokens} of its budget of {budget.tokens} tokens; give it more."
        return _spent(said, "tokens", budget.tokens, "tokens", stage)
    return None


def time_up(budget: Budget, stage: str | None = None) -> Trouble:
    """The seconds of a stage, or for None of the run, are spent."""
    who = f"Stage {stage!r}" if stage is not None else "The run"
    seconds = budget.seconds or 0.0
    said = f"{who} was stopped: its budget of {seconds:g} s is spent; give it more."
    return _spent(said, "seconds", seconds, "s", stage)


def skipped(stage: str, need: str, root: Trouble | None) -> Trouble:
    """Why `stage` did not run: `need` brought nothing, for `root`."""
    return Trouble(
        kind=root.kind if root else "command",
        message=f"Stage {stage!r} was skipped: it needs {need!r}, which did not succeed.",
        cause="needs-failed",
    )


def is_worth_another_try(trouble: Trouble | None) -> bool:
    """Whether the same stage may well succeed in a fresh box."""
    if trouble is None:
        return True
    if trouble.kind == "limit":
        return trouble.cause not in {BUDGET, "no-room"} and trouble.limit == "time"
    return trouble.kind in {"provider", "command"}


def _spent(message: str, limit: str, value: float, unit: str, stage: str | None) -> Trouble:
    return Trouble(
        kind="limit",
        type="LimitExceeded",
        message=message,
        cause=BUDGET,
        limit=limit,
        value=value,
        unit=unit,
        source="stage" if stage is not None else "run",
    )

"""What of a run's spec the state machine decides by."""

from __future__ import annotations

from dataclasses import dataclass

from voidbox_lab.spec import Budget, OnFailure, Retry, RunSpec


@dataclass(frozen=True)
class Plan:
    """What of a stage's spec decides when it is launched and what its end means."""

    needs: tuple[str, ...] = ()
    on_failure: OnFailure = "fail"
    retry: Retry | None = None
    budget: Budget = Budget()  # noqa: RUF009 - frozen
    pool: str | None = None
    place: int = 0
    """Among all stages, in declared order."""
    needed_by: tuple[str, ...] = ()


def plans_of(spec: RunSpec) -> dict[str, Plan]:
    """The plans of all stages by name, in declared (topological) order."""
    needed_by: dict[str, list[str]] = {stage.box.name: [] for stage in spec.stages}
    for stage in spec.stages:
        for need in dict.fromkeys(stage.needs):
            needed_by[need].append(stage.box.name)
    plans = {}
    for place, stage in enumerate(spec.stages):
        box, after = stage.box, tuple(needed_by[stage.box.name])
        plans[box.name] = Plan(stage.needs, box.on_failure, box.retry, box.budget, stage.pool, place, after)
    return plans

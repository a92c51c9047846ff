"""Pipelines as values: stages composed in sequence and in parallel, of which a `RunSpec` is made.

    Pipeline.of(a).then(Pipeline.beside([Pipeline.of(b), Pipeline.of(c)])).then(Pipeline.of(d))

Composition only ever adds edges from what stands before to what comes after, so the graph has no cycle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from voidbox_lab.errors import UserError
from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.file import InputFile
from voidbox_lab.spec.merge import Merge, Reducer
from voidbox_lab.spec.run import RunSpec, Stage
from voidbox_lab.spec.validate import validated
from voidbox_lab.spec.voidbox import VoidBoxSpec


@dataclass(frozen=True)
class Pipeline:
    """A graph of stages with open ends: what comes after it gets the outputs of its `tails`."""

    stages: tuple[Stage, ...]
    """In a topological order."""
    tails: str | Merge
    """The stage, or the merged stages, whose output is the pipeline's."""
    pools: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, box: VoidBoxSpec, *, pools: Mapping[str, int] | None = None, **place: object) -> Pipeline:
        """One stage. `place` holds further fields of `Stage`, `pools` the size of the pool it may name."""
        return cls((validated(Stage, box=box, **place),), box.name, dict(pools or {}))

    @classmethod
    def beside(cls, parts: Sequence[Pipeline], *, reduce: Reducer = "json") -> Pipeline:
        """`parts` side by side; their outputs are merged by `reduce`, in this order.

        Raises:
            UserError: no parts, two stages of one name, or two pools of one name and different sizes.
        """
        if not parts:
            raise UserError("A fan-out has no stages; put at least one into its list.")
        if len(parts) == 1 and reduce == "json" and isinstance(parts[0].tails, str):
            return parts[0]
        tails = validated(Merge, of=tuple(p.tails for p in parts), by=reduce)
        return cls(_joined(parts), tails, _pools(parts))

    def then(self, following: Pipeline) -> Pipeline:
        """`following` after this one: each of its stages that needs nothing gets this one's output.

        Raises:
            UserError: two stages of one name.
        """
        merge = self.tails if isinstance(self.tails, Merge) else None
        needs = (self.tails,) if isinstance(self.tails, str) else self.tails.leaves
        after = [s if s.needs else s.model_copy(update={"needs": needs, "merge": merge}) for s in following.stages]
        parts = (self, replace(following, stages=tuple(after)))
        return Pipeline(_joined(parts), following.tails, _pools(parts))

    def run_spec(
        self,
        *,
        inputs: Mapping[str, InputFile] | None = None,
        budget: Budget | None = None,
        name: str | None = None,
        fresh: bool = False,
    ) -> RunSpec:
        """The run of this pipeline.

        Raises:
            UserError: more stages than a run may have, or an ill-formed name.
        """
        result = None if len(self.stages) == 1 and isinstance(self.tails, str) else self.tails
        return validated(
            RunSpec,
            name=name,
            stages=self.stages,
            inputs=dict(inputs or {}),
            budget=budget or Budget(),
            pools=dict(self.pools),
            result=result,
            fresh=fresh,
        )


def _joined(parts: Sequence[Pipeline]) -> tuple[Stage, ...]:
    stages = tuple(s for p in parts for s in p.stages)
    seen: set[str] = set()
    for stage in stages:
        if stage.box.name in seen:
            raise UserError(
                f"The stage {stage.box.name!r} stands in the pipeline twice; each stage runs once, so give the "
                "second one another name."
            )
        seen.add(stage.box.name)
    return stages


def _pools(parts: Sequence[Pipeline]) -> dict[str, int]:
    pools: dict[str, int] = {}
    for part in parts:
        for name, slots in part.pools.items():
            if pools.setdefault(name, slots) != slots:
                raise UserError(
                    f"The pool {name!r} has {pools[name]} slots here and {slots} there; give it one number."
                )
    return pools

"""What can be run and composed: a `VoidBox`, or a `Pipeline` of some.

    (data | [quant, sentiment] | strategist).run()
    data.fan_out(quant, sentiment, reduce="text").pipe(strategist).run()

A pipeline is a value: composing makes a new one and runs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from voidbox_lab import spec
from voidbox_lab.api.cards import pipeline_card
from voidbox_lab.api.inputs import Inputs, named
from voidbox_lab.api.run import Run
from voidbox_lab.api.waiting import CANCEL_S, blocking, persistently, submitted
from voidbox_lab.cards import Card, Shown
from voidbox_lab.client import AsyncClient
from voidbox_lab.errors import UserError, VoidboxError
from voidbox_lab.settings import Settings
from voidbox_lab.spec import Budget, Reducer, RunRecord, RunSpec

BudgetLike = Budget | str | Mapping[str, float] | None
"""A `Budget`, text for `Budget.parse`, or its fields."""


@dataclass(frozen=True)
class Graph:
    """Stages in their places, and the bytes of files that they name by digest."""

    pipeline: spec.Pipeline
    blobs: Mapping[str, bytes] = field(default_factory=dict)


class Composable(Shown):
    """Base of `VoidBox` and `Pipeline`."""

    def graph(self) -> Graph:
        """The stages of this and how they hang together."""
        raise NotImplementedError

    def __or__(self, following: Part) -> Pipeline:
        return self.pipe(following)

    def __ror__(self, before: Sequence[Composable]) -> Pipeline:
        return _part(before).pipe(self)

    def pipe(self, *following: Part) -> Pipeline:
        """This, and then `following` in sequence; a list is a fan-out."""
        graph = self.graph()
        for part in following:
            after = _part(part).graph()
            graph = Graph(graph.pipeline.then(after.pipeline), {**graph.blobs, **after.blobs})
        return Pipeline(graph)

    def fan_out(self, *branches: Part, reduce: Reducer = "json") -> Pipeline:
        """This, and then `branches` side by side; their outputs are merged by `reduce`, in this order.

        Raises:
            UserError: an unknown reducer, or two stages of one name.
        """
        return self.pipe(fan_out(*branches, reduce=reduce))

    def run_spec(
        self,
        inputs: Mapping[str, spec.InputFile] | None = None,
        *,
        budget: BudgetLike = None,
        name: str | None = None,
        fresh: bool | None = None,
    ) -> RunSpec:
        """The run as data, `inputs` by their digests.

        Raises:
            UserError: more stages than a run may have, or a budget that cannot be read.
        """
        fresh = Settings.from_env().fresh if fresh is None else fresh
        return self.graph().pipeline.run_spec(inputs=inputs, budget=budget_of(budget), name=name, fresh=fresh)

    def run(
        self,
        inputs: Inputs = None,
        *,
        budget: BudgetLike = None,
        name: str | None = None,
        fresh: bool | None = None,
        settings: Settings | None = None,
    ) -> Run:
        """Run to the end, blocking; works inside a running event loop too.

        Args:
            inputs: files for ``/workspace/input`` of every stage that needs no other.
            budget: of all stages together.
            name: what people call the run.
            fresh: run every stage, although an earlier result of it may be known; default: `VOIDBOX_FRESH`.

        Raises:
            UserError: an input that cannot be read, an unknown agent or model, no key for the model.
            Cancelled: Ctrl-C; the run was cancelled first.
            ProviderError: the daemon did not start or was lost.
        """
        return blocking(lambda: self.arun(inputs, budget=budget, name=name, fresh=fresh, settings=settings))

    async def arun(
        self,
        inputs: Inputs = None,
        *,
        budget: BudgetLike = None,
        name: str | None = None,
        fresh: bool | None = None,
        settings: Settings | None = None,
    ) -> Run:
        """As `run`, for async callers. Cancelling the awaiting task cancels the run."""
        async with AsyncClient(settings) as client:
            record = await self._begin(client, inputs, budget, name, fresh)
            try:
                async for _ in client.events(record.id):
                    pass
            except asyncio.CancelledError:
                # Suppressed: the daemon is gone, and with it the run; or it is slow.
                with suppress(VoidboxError, TimeoutError):
                    await persistently(client.cancel(record.id), CANCEL_S)
                raise
            return Run(await client.run(record.id), settings=settings)

    def submit(
        self,
        inputs: Inputs = None,
        *,
        budget: BudgetLike = None,
        name: str | None = None,
        fresh: bool | None = None,
        settings: Settings | None = None,
    ) -> Run:
        """Begin and return at once; the run goes on in the daemon. `Run.wait` waits for it."""

        async def begin() -> Run:
            async with AsyncClient(settings) as client:
                return Run(await self._begin(client, inputs, budget, name, fresh), settings=settings)

        return blocking(begin)

    async def _begin(
        self, client: AsyncClient, inputs: Inputs, budget: BudgetLike, name: str | None, fresh: bool | None
    ) -> RunRecord:
        files = named(inputs)
        # Everything that can be wrong here is found before a byte is copied.
        self.run_spec(budget=budget, name=name, fresh=fresh)
        for data in self.graph().blobs.values():
            await client.upload(data)
        uploaded = {file: await client.upload(source) for file, source in files.items()}
        return await submitted(client, self.run_spec(uploaded, budget=budget, name=name, fresh=fresh))


class Pipeline(Composable):
    """Stages composed in sequence and side by side. Made by ``|``, `pipe`, `fan_out` and `VoidBox.map`."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def graph(self) -> Graph:
        """See `Composable.graph`."""
        return self._graph

    @property
    def stages(self) -> tuple[spec.Stage, ...]:
        """The stages, in a topological order."""
        return self._graph.pipeline.stages

    def __iter__(self) -> Iterator[spec.Stage]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def _card(self) -> Card:
        return pipeline_card(self._graph.pipeline)

    def __repr__(self) -> str:
        names = [s.box.name + (f"({', '.join(s.needs[:4])}{', …' if len(s.needs) > 4 else ''})" if s.needs else "")
                 for s in self.stages[:12]]  # fmt: skip
        more = f", … {len(self) - 12} more" if len(self) > 12 else ""
        return f"<Pipeline of {len(self)}: {', '.join(names)}{more}>"


Part = Composable | Sequence[Any]
"""A box, a pipeline, or a list of parts: a fan-out."""


def fan_out(*branches: Part, reduce: Reducer = "json") -> Pipeline:
    """`branches` side by side; their outputs are merged by `reduce`, in this order.

    Raises:
        UserError: no branches, an unknown reducer, or two stages of one name.
    """
    graphs = [_part(b).graph() for b in branches]
    blobs = {digest: data for g in graphs for digest, data in g.blobs.items()}
    return Pipeline(Graph(spec.Pipeline.beside([g.pipeline for g in graphs], reduce=reduce), blobs))


def budget_of(budget: BudgetLike) -> Budget:
    """A `Budget` of whatever stands for one."""
    if budget is None or isinstance(budget, Budget):
        return budget or Budget()
    return Budget.parse(budget) if isinstance(budget, str) else spec.validated(Budget, **budget)


def _part(part: Part) -> Composable:
    if isinstance(part, Composable):
        return part
    if isinstance(part, list | tuple):
        return fan_out(*part)
    raise UserError(
        f"{type(part).__name__} cannot stand in a pipeline; put VoidBoxes, pipelines or lists of them."
    )

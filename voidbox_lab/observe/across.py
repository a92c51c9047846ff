"""Many runs as pandas frames: runs, stages, model calls, and what was spent on what and when. No I/O, no clock.

A record holds its whole spec and the beginnings of all answers; `facts` keeps what frames need of it, some hundred
bytes for a stage. Whose records they are, a client's or a store's, is the caller's business. pandas is imported
when first needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Literal

from voidbox_lab.spec import RunRecord, StageRecord, Tokens
from voidbox_lab.spec.events import Event, ModelCall

if TYPE_CHECKING:
    import pandas as pd

By = Literal["model", "skill", "stage"]
Measure = Literal["cost_usd", "tokens"]
Period = Literal["hour", "day", "week"]

MAX_KEYS = 8
"""Most columns of `over_time`: the largest, and what is left as `OTHER`."""
OTHER, NO_SKILL, NO_MODEL = "all other", "no skill", "no model"
"""What is no name of a stage, a skill or a model: these have no spaces."""
_FREQUENCY: Mapping[Period, str] = {"hour": "h", "day": "D", "week": "W-MON"}


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What frames say of a stage."""

    name: str
    state: str
    at: float
    """When it began, else when its run was created: UNIX time, seconds."""
    model: str | None
    source: str | None
    skills: tuple[str, ...]
    tokens: Tokens
    cost_usd: float | None
    """None where a call had no known price; 0 where nothing was asked, or an earlier result was taken."""
    seconds: float | None
    cached: bool
    turns: int
    tool_calls: int
    isolation: str | None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What frames say of a run."""

    id: str
    name: str | None
    state: str
    created_at: float
    finished_at: float | None
    stages: tuple[StageFacts, ...]


def facts(record: RunRecord) -> RunFacts:
    """What frames need of `record`."""
    skills = {s.box.name: tuple(skill.name for skill in s.box.skills) for s in record.spec.stages}
    stages = tuple(_stage_facts(record, s, skills.get(s.name, ())) for s in record.stages.values())
    return RunFacts(record.id, record.spec.name, record.state, record.created_at, record.finished_at, stages)


def _stage_facts(record: RunRecord, stage: StageRecord, skills: tuple[str, ...]) -> StageFacts:
    return StageFacts(
        name=stage.name,
        state=stage.state,
        at=stage.started_at if stage.started_at is not None else record.created_at,
        model=stage.model,
        source=stage.model_source,
        skills=skills,
        tokens=stage.tokens,
        cost_usd=None if stage.unpriced else stage.cost_usd or 0.0,
        seconds=stage.duration_s,
        cached=stage.cached is not None,
        turns=stage.turns,
        tool_calls=stage.tool_calls,
        isolation=stage.box.isolation if stage.box else None,
    )


RUN_COLUMNS = (
    *("name", "state", "created", "day", "seconds", "stages", "succeeded", "failed", "tokens", "cost_usd"),
    *("unpriced", "models", "isolation"),
)
"""Columns of `runs_frame`. `seconds` is NaN until the run has ended; `stages`, `succeeded` and `failed` are
counts. `cost_usd` is the sum of what has a price, `unpriced` the number of stages that have none."""


def runs_frame(runs: Iterable[RunFacts], *, zone: tzinfo = UTC) -> pd.DataFrame:
    """One row for each run, indexed by its id; columns `RUN_COLUMNS`. `created` and `day` are times of `zone`."""
    import pandas as pd

    kept = list(runs)
    created = _times([run.created_at for run in kept], zone)
    rows = [_run_row(run) for run in kept]
    frame = pd.DataFrame(rows, columns=[c for c in RUN_COLUMNS if c not in {"created", "day"}])
    frame.insert(2, "created", created)
    frame.insert(3, "day", created.tz_localize(None).normalize())
    frame.index = pd.Index([run.id for run in kept], name="run", dtype="object")
    return frame.astype({"seconds": "float64", "cost_usd": "float64"})


def _run_row(run: RunFacts) -> tuple[object, ...]:
    states = [stage.state for stage in run.stages]
    return (
        run.name,
        run.state,
        run.finished_at - run.created_at if run.finished_at is not None else None,
        len(states),
        states.count("succeeded"),
        states.count("failed"),
        sum(stage.tokens.total for stage in run.stages),
        sum(stage.cost_usd or 0.0 for stage in run.stages),
        sum(stage.cost_usd is None for stage in run.stages),
        ", ".join(sorted({stage.model for stage in run.stages if stage.model})),
        ", ".join(sorted({stage.isolation for stage in run.stages if stage.isolation})),
    )


RUN_STAGE_COLUMNS = (
    *("run", "stage", "state", "at", "day", "model", "model_source", "skills", "input_tokens", "output_tokens"),
    *("cache_read_tokens", "cache_write_tokens", "tokens", "cost_usd", "seconds", "cached", "turns", "tool_calls"),
    "isolation",
)
"""Columns of `run_stages_frame`. `skills` is a tuple of names. `cost_usd` is NaN where unpriced, never 0."""


def run_stages_frame(runs: Iterable[RunFacts], *, zone: tzinfo = UTC) -> pd.DataFrame:
    """One row for each stage of each run; columns `RUN_STAGE_COLUMNS`. `at` and `day` are times of `zone`."""
    import pandas as pd

    pairs = [(run.id, stage) for run in runs for stage in run.stages]
    rows = [
        (
            *(run, s.name, s.state, s.model, s.source, s.skills, s.tokens.input, s.tokens.output),
            *(s.tokens.cache_read, s.tokens.cache_write, s.tokens.total, s.cost_usd, s.seconds, s.cached),
            *(s.turns, s.tool_calls, s.isolation),
        )
        for run, s in pairs
    ]
    frame = pd.DataFrame(rows, columns=[c for c in RUN_STAGE_COLUMNS if c not in {"at", "day"}])
    at = _times([s.at for _, s in pairs], zone)
    frame.insert(3, "at", at)
    frame.insert(4, "day", at.tz_localize(None).normalize())
    return frame.astype({"cost_usd": "float64", "seconds": "float64", "tokens": "int64"})


CALL_COLUMNS = (
    *("run", "stage", "at", "day", "model", "model_source", "skills", "status", "input_tokens", "output_tokens"),
    *("cache_read_tokens", "cache_write_tokens", "tokens", "cost_usd", "duration_s", "first_byte_s"),
)
"""Columns of `calls_frame`. `model` is the stage's, with its provider; `status` the HTTP status the guest saw, 0
if the connection broke. `cost_usd` is NaN where unpriced."""


def calls_frame(runs: Iterable[RunFacts], events: Iterable[Event], *, zone: tzinfo = UTC) -> pd.DataFrame:
    """One row for each model call among `events`, which are of `runs`; columns `CALL_COLUMNS`."""
    import pandas as pd

    stages = {(run.id, stage.name): stage for run in runs for stage in run.stages}
    at, rows = [], []
    for event in events:
        call = event.body
        if not isinstance(call, ModelCall):
            continue
        stage = stages.get((event.run, event.stage or ""))
        model, skills = (stage.model, stage.skills) if stage else (None, ())
        at.append(event.at)
        rows.append(
            (
                *(event.run, event.stage, model or call.model, call.source, skills, call.status),
                *(call.tokens.input, call.tokens.output, call.tokens.cache_read, call.tokens.cache_write),
                *(call.tokens.total, call.cost_usd, call.duration_s, call.first_byte_s),
            )
        )
    frame = pd.DataFrame(rows, columns=[c for c in CALL_COLUMNS if c not in {"at", "day"}])
    times = _times(at, zone)
    frame.insert(2, "at", times)
    frame.insert(3, "day", times.tz_localize(None).normalize())
    return frame.astype({"cost_usd": "float64", "duration_s": "float64", "first_byte_s": "float64"})


def over_time(stages: pd.DataFrame, by: By, period: Period, measure: Measure = "cost_usd") -> pd.DataFrame:
    """Dollars or tokens of each period: a row for each that lies between the first stage and the last, without
    gaps, a column for each model, skill or stage name, the largest first and at most `MAX_KEYS`.

    `stages` is a `run_stages_frame` (or a `calls_frame`). What a stage with several skills spent is divided among
    them in equal parts, so that the columns add up to what was spent. Unpriced stages are in no column.
    """
    import pandas as pd

    keyed = _keyed(stages, by)
    keyed = keyed[keyed[measure].notna()]
    if keyed.empty:
        return pd.DataFrame(index=pd.DatetimeIndex([], name="at"))
    start = keyed["at"].dt.tz_localize(None)
    frequency = _FREQUENCY[period]
    # Floors by calendar: a day of the zone is one even where its clocks changed.
    start = start.dt.to_period("W-SUN").dt.start_time if period == "week" else start.dt.floor(frequency)
    table: pd.DataFrame = keyed.pivot_table(
        index=start, columns="key", values=measure, aggfunc="sum", fill_value=0.0
    )
    largest = table.sum().sort_values(ascending=False, kind="stable").index
    table = table[largest]
    if len(largest) > MAX_KEYS:
        rest = table.iloc[:, MAX_KEYS - 1 :].sum(axis=1)
        table = table.iloc[:, : MAX_KEYS - 1].assign(**{OTHER: rest})
    table = table.reindex(pd.date_range(table.index.min(), table.index.max(), freq=frequency), fill_value=0.0)
    table.index.name, table.columns.name = "at", None
    return table


SHARE_COLUMNS = ("cost_usd", "unpriced", "tokens", "stages", "seconds")


def shares(stages: pd.DataFrame, by: By) -> pd.DataFrame:
    """What each model, skill or stage name took in all, the dearest first; columns `SHARE_COLUMNS`, of which
    `unpriced` and `stages` are counts. Divided among skills as in `over_time`, counts excepted."""
    keyed = _keyed(stages, by)
    groups = keyed.groupby("key", sort=True)
    table: pd.DataFrame = groups[["cost_usd", "tokens", "seconds"]].sum()
    table["unpriced"] = groups["cost_usd"].agg(lambda costs: int(costs.isna().sum())).astype("int64")
    table["stages"] = groups.size()
    table = table[list(SHARE_COLUMNS)]
    dearest: pd.DataFrame = table.sort_values(["cost_usd", "tokens"], ascending=False, kind="stable")
    return dearest


def _keyed(stages: pd.DataFrame, by: By) -> pd.DataFrame:
    """`stages` with a `key`; by skill a row for each of them, which has its part."""
    if by == "model":
        return stages.assign(key=stages["model"].astype("object").where(stages["model"].notna(), NO_MODEL))
    if by == "stage":
        return stages.assign(key=stages["stage"])
    part = 1.0 / stages["skills"].map(lambda names: max(1, len(names))).astype("float64")
    numbers = {name: stages[name] * part for name in ("cost_usd", "tokens", "seconds") if name in stages}
    keys = stages["skills"].map(lambda names: names or (NO_SKILL,))
    return stages.assign(key=keys, **numbers).explode("key", ignore_index=True)


def fitting_period(seconds: float) -> Period:
    """The period that gives a chart of so many seconds some ten to a hundred bars."""
    return "hour" if seconds <= 3 * 86400 else "day" if seconds <= 120 * 86400 else "week"


def _times(at: list[float], zone: tzinfo) -> pd.DatetimeIndex:
    import pandas as pd

    return pd.DatetimeIndex(pd.to_datetime(at, unit="s", utc=True)).tz_convert(zone)

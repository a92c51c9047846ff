"""What is said of samples: quantiles, ratios, verdicts. Nothing here takes a time."""

from __future__ import annotations

import json
import math

import pytest

from voidbox_lab import bench
from voidbox_lab.bench.samples import Failure, Figure, Report, Series, quantile
from voidbox_lab.cli.bench import table
from voidbox_lab.errors import UserError


def series(*samples: float) -> Series:
    """Seconds."""
    return Series("it", "s", samples)


@pytest.mark.parametrize(
    ("samples", "share", "value"),
    [
        ((3.0,), 0.99, 3.0),
        ((1.0, 2.0), 0.5, 1.0),
        ((5.0, 1.0, 3.0), 0.5, 3.0),
        (tuple(map(float, range(1, 101))), 0.95, 95.0),
        (tuple(map(float, range(1, 101))), 0.99, 99.0),
        (tuple(map(float, range(1, 11))), 0.95, 10.0),
    ],
)
def test_quantiles_are_samples(samples: tuple[float, ...], share: float, value: float) -> None:
    """Nearest rank: a figure in a report is one that was measured."""
    assert quantile(samples, share) == value


def test_no_samples_have_no_quantile() -> None:
    """And say so."""
    assert math.isnan(quantile((), 0.5))


def test_verdicts() -> None:
    """By ratio, by value, or none."""
    assert Figure("b", series(2.0), series(1.0)).met is None
    assert Figure("b", series(2.0), series(1.0), wanted_ratio=2.0).met is True
    assert Figure("b", series(2.1), series(1.0), wanted_ratio=2.0).met is False
    assert Figure("b", series(2.0), wanted=1.9).met is False
    assert Figure("b", series(2.0), wanted=2.0).met is True


def test_a_report_keeps_every_sample() -> None:
    """As JSON, with the verdict beside it."""
    report = Report({"cpus": 2}, [Figure("b", series(0.2, 0.1), series(0.1), wanted_ratio=1.5)])
    data = json.loads(json.dumps(report.to_dict()))
    (figure,) = data["figures"]
    assert figure["subject"]["samples"] == [0.2, 0.1]
    assert (figure["p50"], figure["ratio"], figure["met"]) == (0.1, 1.0, True)


def test_what_was_not_measured_is_null() -> None:
    """JSON has no NaN, and nothing measured meets nothing."""
    none = Figure("b", Series("it", "s", ()), series(1.0), wanted_ratio=1.0, wanted=1.0)
    odd = Figure("b", series(1.0), series(math.nan))
    failure = Failure("warm", "No room.", "provider")
    data = json.loads(json.dumps(Report({}, [none, odd], [failure]).to_dict(), allow_nan=False))
    first, second = data["figures"]
    assert (first["p50"], first["ratio"], first["met"]) == (None, None, None)
    assert (second["floor"]["samples"], second["ratio"]) == ([None], None)
    assert data["failures"] == [{"bench": "warm", "message": "No room.", "kind": "provider"}]
    assert [list(column.cells) for column in table([none]).columns][1] == ["-"]


def test_the_table_says_what_was_missed() -> None:
    """A row per figure, with its floor and what is wanted."""
    figures = [Figure("b", series(0.25), series(0.1), wanted_ratio=1.5), Figure("b", Series("m", "MB", (7.0,)))]
    cells = [list(column.cells) for column in table(figures).columns]
    assert cells[1] == ["250.0 ms", "7.0 MB"]
    assert cells[5] == ["2.50", ""]
    assert cells[6] == ["<= 1.5 x [red]missed[/]", ""]


@pytest.mark.anyio
async def test_an_unknown_benchmark() -> None:
    """Is the user's error, before anything is started."""
    with pytest.raises(UserError, match="no benchmark 'speed'"):
        await bench.run(["speed"])

"""Samples become lines, counters become rates, spendings become meters; all of it bounded."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.widgets.test_view_state import played, record
from voidbox_lab.spec.budget import Budget
from voidbox_lab.spec.events import ModelCall, StageChanged, Telemetry, TopProcess
from voidbox_lab.spec.run import RunRecord, RunSpec, Tokens
from voidbox_lab.widgets import static_html
from voidbox_lab.widgets.gauges import gauges, lines, spark, summary
from voidbox_lab.widgets.present import patch, present
from voidbox_lab.widgets.view_state import ViewState, begin
from voidbox_lab.widgets.vitals import MAX_SAMPLES, MAX_TOP, Vitals, sampled


def sample(uptime: float, read: int = 0, received: int = 0, **more: Any) -> Telemetry:
    """A sample at a time since boot, with counters since then."""
    counters = dict.fromkeys(("disk_total_kb", "disk_used_kb", "disk_write_bytes", "net_tx_bytes"), 0)
    fields = {"cpu": 0.5, "load1": 0.1, "memory_total_kb": 1000, "memory_used_kb": 250, "processes": 3, **more}
    return Telemetry(uptime_s=uptime, disk_read_bytes=read, net_rx_bytes=received, **counters, **fields)


def after(*samples: Telemetry) -> Vitals:
    """All of them."""
    vitals = Vitals()
    for one in samples:
        vitals = sampled(vitals, one)
    return vitals


def test_counters_become_rates() -> None:
    """Per second between two samples; what was before the first one says nothing; another box begins anew."""
    vitals = after(sample(10, 5000, 100), sample(12, 7000, 100), sample(13, 7000, 1100), sample(1, 300, 0))
    assert vitals.disk == (0, 1000, 0, 300)
    assert vitals.network == (0, 0, 1000, 0)
    assert vitals.memory == (0.25,) * 4


def test_it_keeps_the_last_samples_and_few_processes() -> None:
    """Whatever the guest says."""
    busy = tuple(TopProcess(pid=n, name=f"p\x1b{n}", cpu=1e15, rss_kb=1 << 50) for n in range(10))
    odd = sample(0.0, 0, 1 << 60, cpu=1e15, memory_used_kb=1 << 50, processes=1 << 60, top=busy)
    vitals = after(*(sample(n) for n in range(200)), odd)
    assert len(vitals.cpu) == len(vitals.disk) == MAX_SAMPLES
    assert len(vitals.top) == MAX_TOP
    assert vitals.top[0].name == "p"
    assert all(map(math.isfinite, (*vitals.cpu, *vitals.network, vitals.load, *(p.cpu for p in vitals.top))))


def test_lines_say_what_they_are() -> None:
    """The last value in words; rates reach the top at their own largest value."""
    vitals = after(sample(1), sample(2, 1 << 20), sample(3, 3 << 20, processes=12))
    named = {line.name: line for line in lines(vitals)}
    assert list(named) == ["CPU", "memory", "disk", "network"]
    assert (named["disk"].text, named["memory"].text) == ("2.0 MB/s", "250.0 kB")
    assert named["disk"].points.split()[-1] == "60.0,1.0"
    assert summary(vitals) == "CPU 50%, memory 250.0 kB, disk 2.0 MB/s, 12 processes"
    assert list(lines(Vitals())) == []
    assert spark((0.5,)) == ""


@pytest.mark.parametrize(
    ("budget", "text", "level", "percent"),
    [
        ("usd=0.5", "$0.1000 of $0.50", "ok", 20),
        ("usd=0.12", "$0.1000 of $0.12", "near", 83),
        ("tokens=10", "20 of 10 tokens", "over", 100),
        ("seconds=60", "30.0 s of 1 min 00 s", "ok", 50),
    ],
)
def test_meters_of_a_budget(budget: str, text: str, level: str, percent: int) -> None:
    """One for each bound; warned of from four fifths on."""
    (gauge,) = gauges(Budget.parse(budget), 20, 0.1, 30.0)
    assert (gauge.text, gauge.level, gauge.percent) == (text, level, percent)


def test_a_cost_that_is_not_known_is_not_metered_as_one() -> None:
    """It says so."""
    (gauge,) = gauges(Budget.parse("usd=1"), 20, None, 30.0)
    assert (gauge.text, gauge.percent) == ("unpriced of $1.00", 0)


def spent(budget: Budget) -> ViewState:
    """A run with this budget, which has used 110 tokens for a tenth of a dollar."""
    spec = RunSpec(stages=record().spec.stages, budget=budget)
    stage = spec.stages[0].model_copy(update={"box": spec.stages[0].box.model_copy(update={"budget": budget})})
    spec = spec.model_copy(update={"stages": (stage,)})
    call = ModelCall(
        request="r", model="m", source="live", status=200, tokens=Tokens(input=110), cost_usd=0.1, duration_s=1
    )
    top = (TopProcess(pid=7, name="<b>python3", cpu=0.9, rss_kb=2048),)
    bodies = [StageChanged(state="running"), call, sample(1), sample(2, 9000, top=top)]
    return played(bodies, state=begin(RunRecord(id="r1", spec=spec, created_at=100.0)))


def test_meters_and_telemetry_are_in_the_frozen_view() -> None:
    """With words for those who see no bars, and nothing of the guest's as markup."""
    html = static_html.render(spent(Budget.parse("usd=0.5,tokens=1000")), now=110.0)
    assert html.count('role="meter"') == 4, "two of the run, two of its stage"
    assert 'aria-valuetext="$0.1000 of $0.50"' in html
    assert "110 of 1,000 tokens" in html
    assert "telemetry: CPU 50%" in html
    assert "&lt;b&gt;python3" in html
    assert "<td>network" not in html.split('class="vbx-list"')[0]
    bare = static_html.render(spent(Budget()), now=110.0)
    assert 'role="meter"' not in bare
    assert "110 tokens · $0.1000" in bare


def test_large_parts_travel_only_when_they_change() -> None:
    """Ten messages a second must stay small."""
    before = spent(Budget.parse("tokens=1000"))
    after_ = played([StageChanged(state="collecting")], state=before)
    (stage,) = patch(before, after_, 200.0)["stages"]
    assert not {"answer", "vitals", "doings"} & stage.keys()
    assert stage["meters"] == present(after_, 200.0)["stages"][0]["meters"]

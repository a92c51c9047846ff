"""What a guest may say of itself: numbers that every reader of a run can reckon with, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from voidbox_lab.spec.events import Telemetry

NUMBERS = [name for name in Telemetry.model_fields if name not in {"type", "top"}]
GOOD: dict[str, Any] = {**dict.fromkeys(NUMBERS, 1), "top": [{"pid": 1, "name": "sh", "cpu": 0.5, "rss_kb": 9}]}


def test_a_sample_is_taken() -> None:
    """Its list of processes is one of JSON; whole numbers are shares, too."""
    sample = Telemetry.model_validate(GOOD)
    assert Telemetry.model_validate_json(sample.model_dump_json()) == sample


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", ["nan", "inf", "1", "9" * 400, float("nan"), float("inf"), -1, 10**30, True, None]
)
def test_what_is_no_measure_is_refused(name: str, value: Any) -> None:
    """Text that reads as a number is how NaN would get past JSON."""
    with pytest.raises(ValidationError):
        Telemetry.model_validate({**GOOD, name: value})


@pytest.mark.parametrize("name", ["pid", "cpu", "rss_kb"])
@pytest.mark.parametrize("value", ["nan", float("inf"), -1, 10**30])
def test_nor_of_a_process(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Telemetry.model_validate({**GOOD, "top": [{**GOOD["top"][0], name: value}]})


@given(st.dictionaries(st.sampled_from(NUMBERS), st.integers() | st.floats() | st.text(max_size=5)))
def test_what_is_taken_can_be_kept(fields: dict[str, Any]) -> None:
    """And read again, as the same."""
    try:
        sample = Telemetry.model_validate({**GOOD, **fields})
    except ValidationError:
        return
    assert Telemetry.model_validate_json(sample.model_dump_json()) == sample
    json.dumps(sample.model_dump(), allow_nan=False)

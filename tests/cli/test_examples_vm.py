"""The example notebooks as a user runs them headless: ``voidbox run NOTEBOOK``, real boxes, scripted models.

The notebooks check their numbers against pandas themselves, and fail where one differs. Here: what their runs say.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from voidbox_lab import images
from voidbox_lab.client.keys import is_key
from voidbox_lab.settings import Settings

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
BOUND_S = 240


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A home of its own over the shared image cache, and no key of any model; its daemon is ended."""
    images.resolve(settings := Settings.from_env())
    home = tmp_path_factory.mktemp("home")
    env = {k: v for k, v in os.environ.items() if not is_key(k) and not k.startswith("OLLAMA_")}
    env |= {"VOIDBOX_HOME": str(home), "VOIDBOX_CACHE": str(settings.cache)}
    yield env
    subprocess.run([sys.executable, "-m", "voidbox_lab.cli", "daemon", "stop"], env=env, timeout=60, check=False)


def run(name: str, env: dict[str, str], directory: Path) -> list[dict[str, Any]]:
    """The records of a notebook's runs, in order."""
    for file in (name, "headlines.csv", "lexicon.csv", "hn_stories.json"):
        shutil.copy(NOTEBOOKS / file, directory)
    shutil.copytree(NOTEBOOKS / "hn-api", directory / "hn-api")
    done = subprocess.run(
        [sys.executable, "-m", "voidbox_lab.cli", "run", name, "--json"],
        env=env, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    records: list[dict[str, Any]] = json.loads(done.stdout)
    for record in records:
        assert {s["model_source"] for s in record["stages"].values()} == {"scripted"}
    return records


def answer(record: dict[str, Any], stage: str) -> Any:
    """The JSON in a stage's answer."""
    text = record["stages"][stage]["output"]
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def cached(record: dict[str, Any]) -> dict[str, str | None]:
    """Stage to the run its answer was taken from."""
    return {name: s["cached"] and s["cached"]["run"] for name, s in record["stages"].items()}


def test_the_trading_pipeline(env: dict[str, str], tmp_path: Path) -> None:
    """Four boxes in turn; then none; then those of a changed prompt and what follows it; then a spent budget."""
    first, again, changed, short = run("trading_pipeline.ipynb", env, tmp_path)
    stages = ("data", "quant", "sentiment", "strategist")
    assert all(s["state"] == "succeeded" and s["isolation"] for s in first["stages"].values())
    assert cached(first) == dict.fromkeys(stages)
    assert answer(first, "data")["prices"]["AAPL"][-1] == 223.02
    assert answer(first, "quant")["AAPL"]["momentum"] == pytest.approx(223.02 / 105.12 - 1, abs=1e-6)
    weights = answer(first, "strategist")
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert max(weights, key=weights.get) == "IBM"

    assert cached(again) == dict.fromkeys(stages, first["run"])
    assert all(s["tokens"] == 0 and s["isolation"] is None for s in again["stages"].values())
    assert answer(again, "strategist") == weights

    assert cached(changed) == {"data": first["run"], "quant": first["run"], "sentiment": None, "strategist": None}
    assert answer(changed, "strategist") != weights

    assert {n: s["state"] for n, s in short["stages"].items()} == {
        "data": "succeeded", "quant": "failed", "sentiment": "skipped", "strategist": "skipped"
    }  # fmt: skip
    assert short["stages"]["quant"]["trouble"]["kind"] == "limit"
    assert short["stages"]["quant"]["tokens"] > 1000
    assert short["state"] == "succeeded", "the failure domain is 'skip'"


def test_the_parallel_pipeline(env: dict[str, str], tmp_path: Path) -> None:
    """Three views with a model each, a vote that one voter fails, and a map over a table."""
    views, vote, mapped = run("parallel_pipeline.ipynb", env, tmp_path)
    models = {name: s["model"] for name, s in views["stages"].items()}
    assert models == {name: f"scripted:desk-{name}" for name in ("quant", "sentiment", "risk", "committee")}
    combined = answer(views, "committee")
    assert combined["views"] == ["quant", "sentiment", "risk"]
    assert sum(combined["points"].values()) == 3 * (0 + 1 + 2 + 3 + 4)

    said = {name: s["output"] for name, s in vote["stages"].items()}
    assert said == {"careful": "AMZN", "terse": "AMZN", "hasty": "GOOG", "broke": None}
    assert (vote["state"], vote["stages"]["broke"]["state"]) == ("succeeded", "failed")
    assert vote["stages"]["broke"]["trouble"]["kind"] == "limit"

    rows = [answer(mapped, name) for name in mapped["stages"]]
    assert [row["symbol"] for row in rows] == ["AAPL", "AMZN", "GOOG", "IBM", "MSFT"]
    assert rows[3]["max_drawdown"] == pytest.approx(-0.363513, abs=1e-6)


def test_the_researcher(env: dict[str, str], tmp_path: Path) -> None:
    """Programs as skills, one host allowed: 22 connections to it, and one to another host, which is refused."""
    (record,) = run("hn_researcher.ipynb", env, tmp_path)
    stage = record["stages"]["researcher"]
    found = answer(record, "researcher")
    assert (found["stories"], found["top"]) == (20, max(_stories()[:20], key=lambda s: s["score"])["id"])
    assert found["comments"] == sum(story["descendants"] for story in _stories()[:20])
    assert stage["connections"] == 23
    assert stage["denied"] == 1
    assert set(stage["files"]) == {"report.md", "stories.jsonl"}


def _stories() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((NOTEBOOKS / "hn_stories.json").read_text())
    return found

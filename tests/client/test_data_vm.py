"""Data in and out of real boxes, as a notebook does it: a frame in, Parquet out, files handed on, folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from voidbox_lab import images
from voidbox_lab.api import VoidBox
from voidbox_lab.client import Client
from voidbox_lab.settings import Settings
from voidbox_lab.spec.events import FileKept, Mounted, Notice

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home of this module's own over the shared cache, with the image built."""
    cache = Settings.from_env().cache
    images.build(Settings.from_env().prepare())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOIDBOX_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("VOIDBOX_CACHE", str(cache))
        settings = replace(Settings.from_env(), spares=0).prepare()
        yield settings
        with Client(settings, start=False) as client:
            client.shutdown()


def test_a_pipeline_of_data(home: Settings, tmp_path: Path) -> None:
    """Two boxes: the first has a frame, values and two folders, the second what the first left."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    (data / "factor").write_text("2")
    (out / "old").write_text("old")
    frame = pd.DataFrame({"close": [1.5, 2.5], "day": pd.to_datetime(["2026-01-02", "2026-01-05"])})
    first = VoidBox(
        "first",
        command="""
            cd /workspace && cp input/prices.parquet output/ && mkdir output/t && cp input/cfg.json output/t/ &&
            ln -s /etc/passwd output/away && cat input/prices.csv /data/factor && ! echo x > /data/factor &&
            echo new > /out/made && rm /out/old
        """,
        mounts=[f"{data}:/data", f"{out}:/out:rw"],
        memory_mb=256,
    )
    second = VoidBox("second", command="cd /workspace/input/first && find . -type f | sort && cat t/cfg.json",
                     memory_mb=256)  # fmt: skip
    inputs = {"prices": frame, "prices.csv": frame[["close"]], "cfg": {"a": [1]}}
    run = (first | second).run(inputs, settings=home).check()
    assert run.output("first") == "close\n1.5\n2.5\n2"
    assert run.output("second") == './prices.parquet\n./t/cfg.json\n{"a": [1]}'
    assert set(run.files()) == {"first/prices.parquet", "first/t/cfg.json"}
    pd.testing.assert_frame_equal(run.files("first")["prices.parquet"].frame(), frame)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"made": "new\n"}
    bodies = [event.body for event in run.events()]
    assert [b.path for b in bodies if isinstance(b, FileKept)] == ["prices.parquet", "t/cfg.json"]
    assert [(b.direction, b.files) for b in bodies if isinstance(b, Mounted)] == [("in", 1), ("in", 1), ("out", 1)]
    assert any("away (a symbolic link)" in b.message for b in bodies if isinstance(b, Notice))
    assert (out / "made").stat().st_mode & 0o7777 == 0o644 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

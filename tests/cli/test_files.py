"""What stages left, from the command line: listed, copied out, refused. Real processes and store, no VMs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Place, fill, spec
from voidbox_lab.client import ensure_daemon
from voidbox_lab.spec import InputFile, digest_bytes
from voidbox_lab.spec.events import RunChanged, StageChanged

RUN, EMPTY = "run-aa0000000001", "run-bb0000000001"
FILES = {
    "report.md": b"# Report",
    "charts/a.png": b"\x89PNG",
    "charts/deep/b.png": b"",
    "odd [red] n\u202eame": b"x",
}


@pytest.fixture(scope="module")
def place(home: Place) -> Place:
    """A run that left files, one that left none, and the daemon with the files' bytes."""
    files = {path: InputFile(digest=digest_bytes(data), size=len(data)) for path, data in FILES.items()}
    for run, left in ((RUN, files), (EMPTY, {})):
        fill(home.settings, run, spec("one"), [
            (None, RunChanged(state="running")),
            ("one", StageChanged(state="succeeded", output="done", files=left)),
            (None, RunChanged(state="succeeded")),
        ])  # fmt: skip
    ensure_daemon(home.settings)
    with home.client() as client:
        for data in FILES.values():
            client.upload(data)
    return home


def test_files_are_listed(place: Place) -> None:
    """With sizes, names escaped; as JSON with digests."""
    shown = place.voidbox("show", RUN, "--files")
    assert "charts/a.png" in shown.stdout
    assert "[red]" in shown.stdout
    assert "\u202e" not in shown.stdout
    rows = place.json("show", RUN, "--files")
    assert {row["path"]: row["digest"] for row in rows} == {p: digest_bytes(d) for p, d in FILES.items()}
    assert place.json("show", EMPTY, "--files", "--stage", "one") == []
    assert "No stage" in place.voidbox("show", EMPTY, "--files").stderr
    assert place.voidbox("show", RUN, "--files", "--output").returncode == 2


def test_files_are_copied(place: Place, tmp_path: Path) -> None:
    """One under its own name or another, a directory with all below it, everything."""
    assert place.voidbox("cp", f"{RUN}/one:report.md", str(tmp_path)).returncode == 0
    assert place.voidbox("cp", f"{RUN}/one:charts/a.png", f"{tmp_path}/new.png").returncode == 0
    (told,) = place.json("cp", f"{RUN}/one:charts/deep", f"{tmp_path}/made/here")
    assert told["to"] == f"{tmp_path}/made/here/b.png"
    done = place.voidbox("cp", f"{RUN}/one", f"{tmp_path}/all")
    assert len(done.stdout.splitlines()) == len(FILES)
    found = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {
        "report.md": FILES["report.md"], "new.png": FILES["charts/a.png"], "made/here/b.png": b"",
        **{f"all/{path}": data for path, data in FILES.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "to", "says"),
    [
        (f"{RUN}/one:none", ".", "report.md"),
        (f"{RUN}/one:../report.md", ".", "There is no"),
        (f"{EMPTY}/one", ".", "left no files"),
        (f"{RUN}/two:x", ".", "no stage"),
        (RUN, ".", "RUN/STAGE"),
        (f"{RUN}/one", "file", "name a directory"),
        (f"{RUN}/one:report.md", "file/below", "cannot be"),
    ],
)
def test_what_cannot_be_copied(place: Place, tmp_path: Path, source: str, to: str, says: str) -> None:
    """In one sentence, and nothing is written."""
    (tmp_path / "file").write_text("mine")
    done = place.voidbox("cp", source, f"{tmp_path}/{to}")
    assert done.returncode == 2
    assert says in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_mount_is_written_as_folder_and_path(place: Place) -> None:
    """What is none is the option's fault."""
    done = place.voidbox("exec", "--mount", "/srv", "--", "true")
    assert done.returncode == 2
    assert "--mount" in done.stderr
    assert "FOLDER:PATH" in done.stderr

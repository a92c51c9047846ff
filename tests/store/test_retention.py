"""What is pruned, and above all what is not; against each store that needs no server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.store.conformance import end, run_spec
from voidbox_lab.errors import ProviderError, UserError
from voidbox_lab.spec import InputFile
from voidbox_lab.spec.events import RunChanged, StageChanged
from voidbox_lab.store import Artifacts, Entry, Pruned, Store, open_store, prune, retention

pytestmark = pytest.mark.anyio
NOW = 1_000_000.0
DAY = 86_400.0


@pytest.fixture(params=["sqlite", "directory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store = await open_store(request.param, tmp_path)
    yield store
    await store.aclose()


@pytest.fixture
async def artifacts(tmp_path: Path) -> Artifacts:
    return await Artifacts.open(tmp_path / "artifacts")


async def _run(store: Store, run: str, *, ended: float | None, state: str = "succeeded", **spec: object) -> None:
    await store.create_run(run, run_spec().model_copy(update=spec), at=(ended or NOW) - 10)
    if ended is not None:
        await store.append(run, [end(state, at=ended)])


async def _kept(artifacts: Artifacts, content: bytes, *, age: float = DAY) -> InputFile:
    file = await artifacts.put(content)
    os.utime(await artifacts.verified(file.digest), (NOW - age, NOW - age))
    return file


async def _ids(store: Store) -> set[str]:
    return {record.id for record in await store.list_runs()}


async def test_by_age(store: Store, artifacts: Artifacts) -> None:
    await _run(store, "old", ended=NOW - 2 * DAY)
    await _run(store, "new", ended=NOW - 0.5 * DAY)
    await _run(store, "on", ended=None)
    assert (await prune(store, artifacts, older_than_s=DAY, now=NOW)).runs == ("old",)
    assert await _ids(store) == {"new", "on"}


async def test_by_number(store: Store, artifacts: Artifacts) -> None:
    """Runs that go on do not count."""
    for i in range(5):
        await _run(store, f"r{i}", ended=NOW - 100 + i)
        await _run(store, f"on{i}", ended=None)
    assert (await prune(store, artifacts, keep=2, now=NOW)).runs == ("r2", "r1", "r0")
    assert (await prune(store, artifacts, keep=0, now=NOW)).runs == ("r4", "r3")
    assert await _ids(store) == {f"on{i}" for i in range(5)}


async def test_what_is_to_be_kept_is_kept_however_old(store: Store, artifacts: Artifacts) -> None:
    """With an age and a number, a run goes only if it is beyond both."""
    for i in range(4):
        await _run(store, f"r{i}", ended=NOW - DAY * (4 - i))
    assert (await prune(store, artifacts, older_than_s=0.5 * DAY, keep=3, now=NOW)).runs == ("r0",)
    assert (await prune(store, artifacts, older_than_s=2.5 * DAY, keep=0, now=NOW)).runs == ("r1",)


async def test_by_state(store: Store, artifacts: Artifacts) -> None:
    """The number is one of runs in those states."""
    for i, state in enumerate(["failed", "succeeded", "failed", "succeeded", "failed"]):
        await _run(store, f"{state}{i}", ended=NOW - 100 + i, state=state)
    pruned = await prune(store, artifacts, keep=1, states={"failed"}, now=NOW)
    assert pruned.runs == ("failed2", "failed0")
    assert (await prune(store, artifacts, states=["succeeded"], now=NOW)).runs == ("succeeded3", "succeeded1")
    assert await _ids(store) == {"failed4"}


async def test_a_run_without_an_end_is_never_deleted(store: Store, artifacts: Artifacts) -> None:
    await _run(store, "queued", ended=None)
    await _run(store, "running", ended=None)
    await store.append("running", [Entry(RunChanged(state="running"), None, 1.0)])
    assert (await prune(store, artifacts, older_than_s=0, keep=0, now=NOW * 2)).runs == ()
    assert (await prune(store, artifacts, states=["queued", "running"], now=NOW * 2)).runs == ()


async def test_without_a_test_no_run_goes(store: Store, artifacts: Artifacts) -> None:
    await _run(store, "r1", ended=1.0)
    stray = await _kept(artifacts, b"stray")
    assert await prune(store, artifacts, now=NOW) == Pruned((), (stray.digest,), 5)
    assert await _ids(store) == {"r1"}


async def test_artifacts_go_with_the_last_run_that_has_them(store: Store, artifacts: Artifacts) -> None:
    """Wherever in a spec or a record the digest stands: also in a prompt, also in an output."""
    shared, own, mentioned, output, stray, young = [
        await _kept(artifacts, name.encode(), age=DAY if name != "young" else 60)
        for name in ("shared", "own", "mentioned", "output", "stray", "young")
    ]
    await _run(store, "old", ended=NOW - 2 * DAY, inputs={"a": shared, "b": own})
    await _run(store, "new", ended=NOW - 1, inputs={"c": shared})
    box = run_spec().stages[0].box.model_copy(update={"prompt": f"compare with {mentioned.digest}, please"})
    await _run(store, "on", ended=None, stages=(run_spec().stages[0].model_copy(update={"box": box}),))
    change = StageChanged(state="succeeded", output=f"see {output.digest}")
    await store.append("on", [Entry(change, "one", NOW)])
    everything = await prune(store, artifacts, older_than_s=DAY, dry_run=True, now=NOW)
    assert await _ids(store) == {"old", "new", "on"}
    assert len(await artifacts.list()) == 6
    pruned = await prune(store, artifacts, older_than_s=DAY, now=NOW)
    assert pruned == everything
    assert (pruned.runs, set(pruned.artifacts)) == (("old",), {own.digest, stray.digest})
    assert pruned.bytes == len(b"own" + b"stray")
    left = {a.digest for a in await artifacts.list()}
    assert left == {f.digest for f in (shared, mentioned, output, young)}


async def test_what_a_client_has_just_asked_for_stays(store: Store, artifacts: Artifacts) -> None:
    """It is about to be submitted, and was not uploaded again since it was there."""
    file = await _kept(artifacts, b"there already")
    assert await artifacts.has(file.digest)
    assert (await prune(store, artifacts, now=(await artifacts.list())[0].modified + 60)).artifacts == ()


async def test_more_runs_than_a_page(store: Store, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAGE", 3)
    file = await _kept(artifacts, b"of the oldest")
    await _run(store, "r0", ended=NOW - 50, inputs={"a": file})
    for i in range(1, 10):
        await _run(store, f"r{i}", ended=NOW - 50 + i)
    assert (await prune(store, artifacts, keep=10, now=NOW)).artifacts == ()
    assert len((await prune(store, artifacts, keep=4, now=NOW)).runs) == 6
    assert await _ids(store) == {"r6", "r7", "r8", "r9"}


async def test_somebody_else_deletes_meanwhile(
    store: Store, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what marks the place of a page, nor what was chosen, needs to be there any more."""
    monkeypatch.setattr(retention, "PAGE", 2)
    for i in range(6):
        await _run(store, f"r{i}", ended=NOW - 50 + i)
    real, gone = store.list_runs, iter(["r4", None, "r1"])

    async def list_runs(**how: object) -> object:
        page = await real(**how)  # type: ignore[arg-type]
        if run := next(gone, None):
            await store.delete_run(run)
        return page

    monkeypatch.setattr(store, "list_runs", list_runs)
    assert (await prune(store, artifacts, keep=3, now=NOW)).runs == ("r2", "r0")
    assert await _ids(store) == {"r5", "r3"}


@pytest.mark.parametrize("wrong", [{"keep": -1}, {"older_than_s": -1.0}])
async def test_numbers_are_not_negative(store: Store, artifacts: Artifacts, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="not negative"):
        await prune(store, artifacts, now=NOW, **wrong)  # type: ignore[arg-type]


async def test_nothing_goes_that_an_unreadable_run_may_refer_to(tmp_path: Path, artifacts: Artifacts) -> None:
    file = await _kept(artifacts, b"precious")
    store = await open_store("directory", tmp_path)
    await _run(store, "bad", ended=NOW - DAY)
    await store.append("bad", [Entry(StageChanged(state="succeeded", output="", output_file=file), "one", NOW)])
    await store.aclose()
    (record,) = tmp_path.rglob("bad/record.json")
    record.write_text(record.read_text().replace('"created_at":', '"created":'))
    store = await open_store("directory", tmp_path)
    with pytest.raises(ProviderError, match="bad"):
        await prune(store, artifacts, now=NOW)
    assert [a.digest for a in await artifacts.list()] == [file.digest]
    await store.aclose()

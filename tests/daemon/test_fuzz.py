"""What the document says, the daemon does: schemathesis on every operation of it, over TCP to a real process.

New routes are covered by being in the document.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.daemon.test_api import spec
from voidbox_lab.client import Client, ensure_daemon, launch
from voidbox_lab.daemon import app
from voidbox_lab.settings import Address, Settings, read_token

EXAMPLES = 15
"""Per operation, besides the cases that schemathesis derives from the schema itself."""
BOUND_S = 60.0
"""Of the whole; after it each operation that is left gets one case."""

JSON = "application/json"

schema = schemathesis.openapi.from_dict(app.document())


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A daemon on a port of its own, `url`, `headers` with its token, and `known` path parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "MODULE", "tests.daemon.serving")
        patch.setenv("VOIDBOX_TEST_FUZZ", "1")
        # One that starts and does not answer as it should is not ours to end, and ends all the same.
        patch.setenv("VOIDBOX_IDLE_S", "60")
        made = Settings.from_env({**os.environ, "VOIDBOX_HOME": str(tmp_path_factory.mktemp("fuzz"))})
        made = replace(made, tcp=Address("127.0.0.1", 0))
        health = ensure_daemon(made)
        try:
            headers = {"Authorization": f"Bearer {read_token(made.token_file)}"}
            with Client(made) as client:
                run = client.submit(spec("one")).id
                list(client.events(run))
                digest = client.upload(b"known").digest
            known = {"run": run, "digest": digest}
            yield SimpleNamespace(
                url=health.tcp, headers=headers, known=known, tried=set(), began=time.monotonic()
            )
            assert "Traceback" not in (made.data / "logs" / "daemon.log").read_text()
        finally:
            os.kill(health.pid, signal.SIGKILL)
            end = time.monotonic() + 10
            while Path(f"/proc/{health.pid}").exists() and time.monotonic() < end:
                time.sleep(0.02)


def one_operation(method: str, path: str) -> Callable[..., None]:
    """A test of it: schemathesis' own would all be of one name, and pytest-xdist tells tests apart by theirs."""

    @schema.include(method=method.upper(), path=path).parametrize()
    @hypothesis_settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def test(fuzzed: Any, case: Any) -> None:
        if case.operation.label in fuzzed.tried and time.monotonic() - fuzzed.began > BOUND_S:
            return
        fuzzed.tried.add(case.operation.label)
        check(fuzzed, case)
        # Made-up names are unknown ones; the same on what there is.
        if known := {name: value for name, value in fuzzed.known.items() if name in case.path_parameters}:
            case.path_parameters |= known
            check(fuzzed, case)

    return test


for path, found in app.document()["paths"].items():
    for method in found:
        name = re.sub(r"\W+", "_", f"{method}{path}").strip("_")
        globals()[f"test_the_document_is_kept_by_{name}"] = one_operation(method, path)


def test_every_operation_was_tried(fuzzed: Any) -> None:
    """After the others, in this file's order."""
    operations = {f"{m.upper()} {path}" for path, found in app.document()["paths"].items() for m in found}
    assert fuzzed.tried == operations


def check(fuzzed: Any, case: Any) -> None:
    case.call_and_validate(
        base_url=fuzzed.url,
        headers=fuzzed.headers,
        timeout=20,
        # What a schema allows may still be refused: an agent that there is not, a file that was not uploaded.
        # What it does not allow may be read all the same in JSON: "1" for 1, as pydantic does.
        excluded_checks=[
            positive_data_acceptance,
            *([negative_data_rejection] if case.media_type == JSON else []),
        ],
    )

"""What scripts/playground does once everything is installed: two servers, a run, and where to see it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from voidbox_lab.settings import Settings
from voidbox_lab.spec.tracing import trace_id

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".playground"
VOIDBOX = ROOT / ".venv/bin/voidbox"
NOTEBOOK = ROOT / "notebooks/quickstart.ipynb"
HERE = {
    name: value for name, value in os.environ.items() if not name.startswith(("VOIDBOX_", "OTEL_", "PHOENIX_"))
}
"""Of our environment what is not about another daemon, store or collector."""
START_S = 120.0
"""Phoenix makes its database first: 25 s on a busy machine."""
SEEN_S = 60.0
RUN_S = 600.0
QUERIES = (
    "sum by (gen_ai_token_type) (gen_ai_client_token_usage_sum)",
    "voidbox_stage_duration_seconds_sum",
    "voidbox_boot_duration_seconds_sum",
)


class Missing(Exception):
    """Something is not as it must be; the message is one sentence."""


def port(wanted: int) -> int:
    """`wanted`, or one that is free."""
    for number in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Missing("No port is free on 127.0.0.1.")


def until(what: str, bound: float, found: Callable[[], Any]) -> Any:
    """What `found` gives, once it gives something."""
    end = time.monotonic() + bound
    while time.monotonic() < end:
        try:
            if result := found():
                return result
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    raise Missing(f"{what} within {bound:g} s.")


@contextmanager
def serving(name: str, command: list[str | Path], log: Path, ready: str, **env: str) -> Iterator[None]:
    """A server that answers at `ready`, ended with the context."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=HERE | env, start_new_session=True
        )

    def answers() -> bool:
        if process.poll() is not None:
            raise Missing(f"{name} ended with {process.returncode}; see {log}.")
        return httpx.get(ready, timeout=5).status_code == 200

    try:
        until(f"{name} did not answer; see {log}", START_S, answers)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def prometheus(place: Path, number: int, target: int) -> tuple[list[str | Path], str]:
    """Its command, which fetches metrics from port `target`, and where it is ready."""
    program = shutil.which("prometheus")
    if program is None:
        raise Missing("prometheus is not on PATH; run scripts/setup --playground.")
    place.mkdir(parents=True, exist_ok=True)
    scrape = {"job_name": "voidbox", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    config = place / "prometheus.yml"
    config.write_text(
        json.dumps({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]})
    )
    flags = [
        f"--config.file={config}",
        f"--storage.tsdb.path={place / 'data'}",
        f"--web.listen-address=127.0.0.1:{number}",
    ]
    return [program, *flags], f"http://127.0.0.1:{number}/-/ready"


def phoenix_env(place: Path, number: int) -> dict[str, str]:
    """On loopback, and without a word to anybody else."""
    place.mkdir(parents=True, exist_ok=True)
    return {
        "PHOENIX_WORKING_DIR": str(place),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(number),
        "PHOENIX_GRPC_PORT": str(port(0)),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }


def run(env: dict[str, str]) -> str:
    """The quickstart, in a box; the run's id."""
    executed = Path(env["VOIDBOX_HOME"]) / "quickstart.ipynb"
    if code := voidbox(env, "run", str(NOTEBOOK), "--fresh", "--output", str(executed)):
        raise Missing(f"The quickstart ended with {code}; see what it says above.")
    newest = subprocess.run(
        [VOIDBOX, "show", "@last", "--json"], env=HERE | env, timeout=60, check=True, stdout=subprocess.PIPE
    )
    return str(json.loads(newest.stdout)["id"])


def voidbox(env: dict[str, str], *arguments: str) -> int:
    """Its exit code."""
    return subprocess.run([VOIDBOX, *arguments], env=HERE | env, timeout=RUN_S, check=False).returncode


def metrics(url: str, since: float) -> list[Any]:
    """Series of tokens that were fetched after the time `since`."""
    query = f"timestamp(gen_ai_client_token_usage_sum) > {since:.3f}"
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=10)
    return list(answer.raise_for_status().json()["data"]["result"])


def spans(url: str, trace: str) -> list[Any]:
    """Spans of `trace` that the trace viewer has, once the outermost, which is sent last, is among them."""
    answer = httpx.get(f"{url}/v1/projects/default/spans", params={"limit": 1000}, timeout=10)
    found = [s for s in answer.raise_for_status().json()["data"] if s["context"]["trace_id"] == trace]
    return found if any(span["parent_id"] is None for span in found) else []


def graphs() -> dict[str, str]:
    """`QUERIES`, as Prometheus' page takes them."""
    shown: dict[str, str] = {}
    for n, query in enumerate(QUERIES):
        shown |= {f"g{n}.expr": query, f"g{n}.tab": "0", f"g{n}.range_input": "5m"}
    return shown


def main() -> int:
    """Everything, until Ctrl-C or, with --check, until it was seen."""
    parser = argparse.ArgumentParser(
        prog="scripts/playground", description="Shows a run in Prometheus and Phoenix."
    )
    parser.add_argument("--check", action="store_true", help="leave once both have the run")
    check = parser.parse_args().check
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        place = PLACE
        if check:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="voidbox-playground-")))
        scraped, metric_port, trace_port = (port(0 if check else wanted) for wanted in (9464, 9090, 6006))
        metric_url, trace_url = f"http://127.0.0.1:{metric_port}", f"http://127.0.0.1:{trace_port}"
        env = {
            "VOIDBOX_HOME": str(place / "home"),
            "VOIDBOX_CACHE": str(Settings.from_env().cache),  # images are there
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{trace_url}/v1/traces",
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(scraped),
        }
        print("==> Prometheus and Phoenix", flush=True)
        command, ready = prometheus(place / "prometheus", metric_port, scraped)
        stack.enter_context(serving("Prometheus", command, place / "prometheus/log", ready))
        own = phoenix_env(place / "phoenix", trace_port)
        command = [PLACE / "venv/bin/phoenix", "serve"]
        stack.enter_context(serving("Phoenix", command, place / "phoenix/log", f"{trace_url}/healthz", **own))
        stack.callback(voidbox, env, "daemon", "stop")
        print("==> the quickstart, in a box", flush=True)
        trace = trace_id(run(env))
        over = time.time()
        series = until("Prometheus fetched no metrics", SEEN_S, lambda: metrics(metric_url, over))
        shown = until("Phoenix got no whole trace", SEEN_S, lambda: spans(trace_url, trace))
        print(f"==> Prometheus has {len(series)} series of tokens, Phoenix a trace of {len(shown)} spans")
        if check:
            return 0
        print(f"\nmetrics  {metric_url}/graph?{urlencode(graphs())}\ntraces   {trace_url}/projects\n")
        print("To see others there, in a shell that has no other VOIDBOX_ or OTEL_ variables:\n")
        for name, value in env.items():
            print(f"    export {name}={shlex.quote(value)}")
        print("\nCtrl-C ends it; .playground keeps the data.", flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except Missing as error:
        sys.exit(f"scripts/playground: {error}")

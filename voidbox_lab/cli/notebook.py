"""``voidbox run NOTEBOOK``, see `voidbox_lab.cli.run`: execute a notebook headless and print what its runs found.

The notebook's own code decides what runs; this reads the run records that its cells displayed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from voidbox_lab.cli.output import ago, dollars, err, out, print_json
from voidbox_lab.errors import (
    BoxLost,
    Cancelled,
    CommandFailed,
    LimitExceeded,
    ProviderError,
    Unavailable,
    UserError,
    VoidboxError,
    from_dict,
)
from voidbox_lab.settings import Settings

if TYPE_CHECKING:
    from nbclient.exceptions import CellExecutionError

RUN_MIME = "application/vnd.voidbox.run+json"
"""What `voidbox_lab.widgets` gives a run's output in a notebook."""
_OURS = (BoxLost, Cancelled, LimitExceeded, ProviderError, Unavailable, UserError)
_LATE = "CellTimeoutError"


def execute(notebook: Path, *, output: Path | None, timeout: float, json: bool, fresh: bool) -> None:
    """Execute a notebook headless and print, for each stage, its answer and what it ran on.

    Args:
        output: where to write the executed notebook.
        timeout: bound on each cell, in seconds.
        json: print the runs as JSON.
        fresh: its runs take no earlier results.

    Raises:
        VoidboxError: a cell or a run failed, as the kind it is; told after what ran was printed.
    """
    import nbformat  # here: it takes a second, which no other subcommand should pay

    if timeout <= 0:
        raise UserError(f"--timeout {timeout:g} is no bound; give seconds greater than 0.")
    book = _read(notebook)
    began = time.monotonic()
    if not json:
        err.print(f"executing {escape(str(notebook))} …")
    trouble = _execute(book, notebook, timeout, fresh)
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(book, output)  # type: ignore[no-untyped-call]
        except OSError as e:
            # Told after the runs are printed: they have been paid for.
            trouble = trouble or UserError(
                f"The executed notebook cannot be written to {output} ({e.strerror}); give another --output."
            )
    found = runs(book)
    if json:
        print_json(found)
    else:
        for number, record in enumerate(found):
            _show(record, {earlier["run"] for earlier in found[:number]})
        out.print(f"notebook: {len(found)} run(s) in {ago(time.monotonic() - began)}")
    if trouble is not None:
        raise trouble
    if any(record["state"] != "succeeded" for record in found):
        raise CommandFailed(f"A run in {notebook} did not succeed; its trouble is printed above.", exit_code=1)


def runs(book: Any) -> list[dict[str, Any]]:
    """The run records that the notebook's outputs hold, in order, each run once in its last state."""
    last: dict[str, dict[str, Any]] = {}
    for cell in book.cells:
        for shown in cell.get("outputs", []):
            record = shown.get("data", {}).get(RUN_MIME)
            if isinstance(record, dict) and "run" in record:
                last[record["run"]] = record
    return list(last.values())


def _read(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except OSError as e:
        raise UserError(f"The notebook {path} cannot be read ({e.strerror}); check the path.") from e
    except (nbformat.ValidationError, ValueError, KeyError, AttributeError) as e:
        raise UserError(f"{path} is not a notebook; give a .ipynb file.") from e


class _Stop:
    """Ctrl-C as the notebook's own stop button: the kernel is interrupted, so that the cell can cancel its run.

    nbclient's own handler (0.11) shuts the kernel down, fails in doing so, and leaves the run to go on unseen.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.client: Any = None
        self._task: asyncio.Task[Any] | None = None

    def install(self, notebook: Any) -> None:
        """Take the signals over; nbclient calls it when its handlers are in place, and removes them itself."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._on_signal)
            except (RuntimeError, ValueError):
                return  # not the main thread, where there are no signals

    def check(self, cell: Any, cell_index: int) -> None:
        """No further cell once a stop was asked for, even if the last one went through."""
        if self.asked:
            raise self.trouble()

    def trouble(self) -> Cancelled:
        """What to say after it."""
        return Cancelled("The notebook was stopped; what ran in it is cancelled.", cause="interrupted")

    def _on_signal(self) -> None:
        self.asked += 1
        kernel = self.client.km
        # A cell that will not be interrupted is ended by the second Ctrl-C.
        ending = kernel.interrupt_kernel() if self.asked == 1 else kernel.shutdown_kernel(now=True)
        self._task = asyncio.ensure_future(ending)


def _execute(book: Any, path: Path, timeout: float, fresh: bool) -> VoidboxError | None:
    """Execute in place; the trouble, if any, after which the cells before it keep their outputs."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from traitlets.config import Config

    config = Config()
    # UNIX sockets: no port that other users of this machine could reach, and no warning about one.
    config.KernelManager.transport = "ipc"
    config.KernelManager.ip = str(Settings.from_env().prepare().runtime / f"kernel-{os.getpid()}")
    stop = _Stop()
    client = stop.client = NotebookClient(
        book,
        timeout=timeout,
        # A cell past its time is interrupted, so that it can cancel its run, and then fails under this name.
        interrupt_on_timeout=True,
        error_on_timeout={"ename": _LATE, "evalue": "", "traceback": []},
        kernel_name=book.metadata.get("kernelspec", {}).get("name", "python3"),
        resources={"metadata": {"path": str(path.parent)}},
        config=config,
        on_notebook_start=stop.install,
        on_cell_start=stop.check,
    )
    try:
        # With an environment of its own only where it differs: nbclient takes it for the whole one.
        client.execute(**({"env": {**os.environ, "VOIDBOX_FRESH": "1"}} if fresh else {}))
    except Cancelled as e:
        return e
    except asyncio.CancelledError:
        return stop.trouble()  # while the kernel was starting, when the handler is still nbclient's
    except CellExecutionError as e:
        return stop.trouble() if stop.asked else _cell_trouble(e, path, timeout)
    except DeadKernelError:
        if stop.asked:
            return stop.trouble()
        return ProviderError(f"The kernel of {path} died; run the notebook in JupyterLab to see why.")
    return None


def _cell_trouble(error: CellExecutionError, path: Path, timeout: float) -> VoidboxError:
    """What failed a cell, as the kind it is: an error of ours keeps its kind, any other is the notebook's own."""
    if error.ename == _LATE:
        return LimitExceeded(
            f"A cell of {path} took longer than {timeout:g} s; give --timeout a larger number.",
            limit="time",
            value=timeout,
            unit="s",
            source="user",
        )
    kind = next((c.kind for c in _OURS if c.__name__ == error.ename), "command")
    return from_dict({"kind": kind, "message": f"A cell of {path} failed: {error.ename}: {error.evalue}"})


def _show(record: dict[str, Any], shown: Set[str]) -> None:
    """One run. An answer that one of the runs in `shown` gave, and that was taken again, is not printed again."""
    for name, stage in record["stages"].items():
        cached = (stage.get("cached") or {}).get("run")
        out.rule(f"[bold]{escape(name)}[/] · {'cached' if cached else stage['state']}", align="left")
        if stage.get("output") and cached not in shown:
            out.print(escape(stage["output"].strip()))
        if stage.get("trouble"):
            out.print(f"[red]{escape(stage['trouble']['message'])}[/]")
        out.print("  ".join(f"[dim]{k}[/] {escape(str(v))}" for k, v in _facts(stage, cached).items()))


def _facts(stage: dict[str, Any], cached: str | None) -> dict[str, object]:
    if cached is not None:
        return {"answer of run": cached, "cost": "none"}
    facts: dict[str, object] = {"model": f"{stage.get('model')} ({stage.get('model_source')})"}
    if stage.get("isolation") is None:
        return facts  # it got no box, so there is nothing to tell of one
    boxed = {"isolation": stage["isolation"], "vsock": stage.get("vsock")}
    return {
        **boxed,
        **facts,
        "tokens": stage.get("tokens"),
        "cost": dollars(stage.get("cost_usd")),
        "boot": ago(stage.get("boot_s")),
        "time": ago(stage.get("duration_s")),
    }

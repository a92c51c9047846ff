"""What boxes, engine and API cost, measured beside what they cannot cost less than: `voidbox bench`.

Every figure stands next to a *floor* taken in the same run, on the same machine, with the same neighbours: bare
QEMU for a start, a spawn timed inside the guest for a command, a raw vsock echo for a request, a plain copy for a
file, the bare appends for a stage, prepared bytes for a reader of events.
What travels between machines is the ratio. Never used by tests to assert a time.
"""

from voidbox_lab.bench.samples import Failure, Figure, Report, Series
from voidbox_lab.bench.suite import NAMES, run

__all__ = ["NAMES", "Failure", "Figure", "Report", "Series", "run"]

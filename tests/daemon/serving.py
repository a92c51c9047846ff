"""``python -m tests.daemon.serving``: the real daemon process over the fake backend, for tests of its life.

With ``VOIDBOX_TEST_FUZZ=1`` it takes requests at any rate and goes on after ``POST /v1/shutdown``.
"""

import os
import sys
from dataclasses import replace

from tests.daemon.doubles import fake_backend
from voidbox_lab.daemon import ratelimit
from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.serve import main

if __name__ == "__main__":
    if os.environ.get("VOIDBOX_TEST_FUZZ") == "1":
        ratelimit.TCP = replace(ratelimit.TCP, rate=1e6, burst=1 << 20)
        ended = Daemon.stop
        # Signals and idleness come while no request is in flight.
        Daemon.stop = lambda self: None if self.activity.requests else ended(self)  # type: ignore[method-assign]
    sys.exit(main(fake_backend))

"""``python3 -m lab_agent``."""

from __future__ import annotations

import os
import sys

from lab_agent.main import main

if __name__ == "__main__":
    status = main(sys.argv[1:], dict(os.environ), sys.stdin.buffer, sys.stdout.buffer)
    # Not sys.exit: all is flushed, there is nothing to tear down, and finalising the interpreter costs time.
    os._exit(status)

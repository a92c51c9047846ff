"""``python -m tests.daemon.serving``: the real daemon process over the fake backend, for tests of its life."""

import sys

from tests.daemon.doubles import fake_backend
from voidbox_lab.daemon.serve import main

if __name__ == "__main__":
    sys.exit(main(fake_backend))

"""``python -m voidbox_lab.daemon``: what the client starts. Runs until idle, stopped or signalled."""

import sys

from voidbox_lab.daemon.live import live_backend
from voidbox_lab.daemon.serve import main
from voidbox_lab.errors import VoidboxError

if __name__ == "__main__":
    try:
        sys.exit(main(live_backend))
    except VoidboxError as e:
        sys.exit(e.message)

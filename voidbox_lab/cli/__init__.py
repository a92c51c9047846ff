"""The ``voidbox`` command. All but ``image``, ``template`` and ``volume`` are clients of the daemon.

``docs/cli.md`` has every command; `output` says what they share: JSON, errors, exit codes.

Exit codes: 0 success, 1 a run or guest command failed, 2 user error, 3 the host's side failed, 4 a limit
was hit, 130 cancelled. ``voidbox exec`` returns the guest command's own code instead, and, as timeout(1)
and container tools do, 124 for a time-out, 125 for a failure of ours, 126 and 127 for a program that
cannot be executed or found.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    # Imported here: `python -m voidbox_lab…` helpers that import the package stay light.
    from voidbox_lab.cli.app import run

    sys.exit(run(sys.argv[1:]))

#!/usr/bin/python3 -IS
"""What ``/usr/bin/lab-agent`` is a copy of.

Isolated, so that neither the work directory nor PYTHONPATH decides what it imports, and nothing of its own path
reaches the programs it starts. In a box it seldom runs: `voidbox_guest.warm` knows it by its text and does what it
says in a fork of PID 1.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, "/usr/lib/voidbox")
    from lab_agent.main import main

    os._exit(main(sys.argv[1:], dict(os.environ), sys.stdin.buffer, sys.stdout.buffer))

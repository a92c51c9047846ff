#!/usr/bin/python3 -IS
"""PID 1 of a box: finds the guest agent beside itself and starts it.

Isolated mode (``-I -S``) leaves this directory off the path, on purpose: nothing but the agent is imported
from here. Not a place for logic; an interpreter started on a script cannot use its byte code.
"""

import sys

sys.path.insert(0, "/usr/lib/voidbox")

from voidbox_guest.main import main

main()

"""The guest agent: PID 1 of every box, standard library only, single-threaded.

It runs on CPython 3.11 or newer without ``site``. Under emulation an import costs milliseconds, so the modules
here use the C modules below `socket`, `signal`, `json` and friends where those are small and stable.
"""

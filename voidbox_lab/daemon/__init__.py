"""The daemon: one process per user that owns boxes, gateway and store, behind an HTTP API on a UNIX socket.

Started on demand by the client (``python -m voidbox_lab.daemon``); leaves when idle. Not for deciding how
a run goes: that is the engine's.
"""

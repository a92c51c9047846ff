"""What may be asked over the wire: operations, error codes, channels and bounds. Constants only.

A REQUEST is ``{"op": NAME, ...}``. The guest ends the stream with one REPLY: ``{"ok": {...}}`` or
``{"error": {"code": CODE, "message": TEXT, ...}}``; before it come EVENT and DATA frames, where the
operation has any. After CANCEL the guest still replies.

============ ============================================================ =================================
op           request fields                                               answer
============ ============================================================ =================================
ping         -                                                            ``time_ns, uptime_s, boot``
exec         ``argv, env, cwd, user, stdin, timeout_s, rlimits``,         EVENT ``started, exited, denied``;
             ``pty``; DATA 0, END; EVENT ``resize``                       DATA 1, 2; ``exit`` fields
put          ``path, mode, user, parents``; DATA 0, END                   ``size``
get          ``path, user, offset, limit``                                DATA 0; ``size``
stat         ``path, user``                                               ``type, size, mode, uid, gid, mtime``
mkdir        ``path, user, mode, parents``                                -
list         ``path, user, recursive``                                    ``entries, truncated``
remove       ``path, user, recursive``                                    -
unpack       ``path, user, mount``; DATA 0 (``wire.bundle``), END         ``files, bytes``
pack         ``path, user, links, changed, max_files, max_bytes``         DATA 0; ``entries, left_out, shown``
telemetry    ``interval_s``                                               EVENT per sample until CANCEL
policy       ``commands, read, write, syscalls, rlimits, caps``           ``landlock, seccomp``
identity     ``hostname, time_ns, entropy``                               -
proxy        ``listen, port``                                             ``listen``
capture      ``port``                                                     -
mount        ``serial, path, read_only``                                  -
unmount      -                                                            -; all commands are dead then
shutdown     -                                                            -, then power off
============ ============================================================ =================================

``denied`` is ``{"rule", "subject", "message", "program", "count"}``, as `voidbox_lab.spec.events.Denied`.
``pty`` and ``resize`` are ``{"rows": ROWS, "cols": COLS}``. With ``pty`` the command has a terminal of that size:
DATA 0 is typed there, DATA 1 is what it shows, and there is no DATA 2. Closing DATA 0 is not an end of file, for
which a terminal has a character; a hard CANCEL hangs up.
"""

from __future__ import annotations

OP_PING, OP_EXEC, OP_PUT, OP_GET, OP_STAT, OP_MKDIR = "ping", "exec", "put", "get", "stat", "mkdir"
OP_LIST, OP_REMOVE, OP_TELEMETRY, OP_POLICY = "list", "remove", "telemetry", "policy"
OP_IDENTITY, OP_PROXY, OP_SHUTDOWN = "identity", "proxy", "shutdown"
OP_MOUNT, OP_UNMOUNT = "mount", "unmount"
OP_PACK, OP_UNPACK = "pack", "unpack"
OP_CAPTURE = "capture"

STDIN, STDOUT, STDERR = 0, 1, 2
"""Channels. File contents travel on channel 0."""

# Error codes.
BAD_REQUEST = "bad-request"
NOT_FOUND = "not-found"
DENIED = "denied"
EXISTS = "exists"
NOT_DIRECTORY = "not-a-directory"
IS_DIRECTORY = "is-a-directory"
NOT_REGULAR = "not-a-regular-file"
NOT_EMPTY = "not-empty"
NO_SPACE = "no-space"
TOO_LARGE = "too-large"
NOT_EXECUTABLE = "not-executable"
BUSY = "busy"
CANCELLED = "cancelled"
UNSUPPORTED = "unsupported"
IO = "io"
INTERNAL = "internal"

# Bounds.
MAX_STREAMS = 1024
"""Requests open at once on one connection."""
MAX_EXECS = 512
"""Commands running at once in one box."""
MAX_ARGS = 4096
"""Arguments, and likewise environment entries, of one command; their bytes are bounded by the frame."""
MAX_ROWS = MAX_COLS = 4096
"""Rows, and likewise columns, of a terminal; at least 1."""
MAX_PATH = 4096
"""Bytes of a path (PATH_MAX)."""
MAX_ENTRIES = 4096
"""Entries in one directory listing."""
MAX_PROXIED = 256
"""TCP connections the guest's proxy carries at once for each of its ports."""
MAX_PROXIES = 8
"""Ports it listens on."""
KILL_GRACE_S = 2.0
"""Seconds between SIGTERM and SIGKILL after a time-out or a soft cancel."""
LINGER_S = 0.25
"""Seconds that children which still hold a finished command's output get, before they are killed."""
HANDSHAKE_S = 30.0
"""Seconds either side waits for the next handshake frame."""
MIN_INTERVAL_S = 0.2
"""Shortest telemetry interval, seconds."""

PROXY_PORT = 8129
"""Where the guest's proxy listens on 127.0.0.1 unless told otherwise: the way to the model's gateway."""
EGRESS_PORT = 8130
"""Where it listens for the way to the egress proxy, in boxes whose network is not ``none``."""
CAPTURE_PORT = 8131
"""Where what meant to go elsewhere arrives, in boxes whose network is ``open``."""
AGENT_UID = 1000
"""uid and gid of everything the agent runs."""
AGENT_HOME = "/home/agent"
BOOT_DATA = "/sys/firmware/qemu_fw_cfg/by_name/opt/voidbox/boot/raw"
"""The box's boot data: JSON with version, secret, hostname, machine_id, control_port, entropy, time_ns.
A template's has version, ``"template": true`` and zeros for the secret."""
BOOT_DATA_SIZE = 1024
"""Bytes of the boot data, padded with spaces: a clone's must be as long as its template's was."""
READY_LINE = "voidbox-guest: ready"
"""What the guest agent writes to the console before it dials the host."""
TEMPLATE_LINE = "voidbox-guest: template ready"
"""What it writes instead in a template: from now on the machine may be saved."""

#!/usr/lib/voidbox/rt/busybox sh
# What lab-agent is in an image of somebody else's, which need not have a Python or a shell: `launcher.py`, by the
# interpreter that we brought along. In a box it seldom runs either.
exec /usr/lib/voidbox/rt/ld.so --inhibit-cache --library-path /usr/lib/voidbox/rt/lib \
  /usr/lib/voidbox/rt/bin/python3 -I -S /usr/lib/voidbox/lab_agent/launcher.py "$@"

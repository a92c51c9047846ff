"""``python -m tests.cluster.worker SCHEDULER MEMORY_MB VCPUS LEASE_S``: a worker process over the double."""

import logging
import sys

import anyio

from tests.cluster.doubles import worker_backend
from voidbox_lab.cluster import station
from voidbox_lab.daemon.worker import work
from voidbox_lab.settings import Settings

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    station.LEASE_S = float(sys.argv[4])
    anyio.run(work, sys.argv[1], Settings.from_env(), int(sys.argv[2]), int(sys.argv[3]), worker_backend)

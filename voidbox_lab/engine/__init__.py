"""A run as a state machine apart from its I/O, and the driver that carries it out."""

from voidbox_lab.engine.admission import Admission, Capacity, Waiting
from voidbox_lab.engine.cache import StageCache
from voidbox_lab.engine.executor import Executor, LocalExecutor
from voidbox_lab.engine.job import Host, StageJob
from voidbox_lab.engine.journal import Journal
from voidbox_lab.engine.rest import interrupt
from voidbox_lab.engine.runner import Runner

__all__ = [
    "Admission",
    "Capacity",
    "Executor",
    "Host",
    "Journal",
    "LocalExecutor",
    "Runner",
    "StageCache",
    "StageJob",
    "Waiting",
    "interrupt",
]

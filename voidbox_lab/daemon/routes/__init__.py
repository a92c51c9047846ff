"""The API's routes by subject. Each module's `routes(daemon)` is a few lines per route over `Daemon`."""

from voidbox_lab.daemon.routes import artifacts, boxes, house, runs

ALL = (runs.routes, artifacts.routes, boxes.routes, house.routes)

__all__ = ["ALL"]

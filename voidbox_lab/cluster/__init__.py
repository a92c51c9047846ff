"""Stages on the hosts of a Dask cluster: the daemon's side (`executor`) and the workers' (`station`).

`distributed` is imported only where a cluster is asked for; this package can be imported without it.
"""

from voidbox_lab.cluster.executor import DaskExecutor

__all__ = ["DaskExecutor"]

"""Ways out of a box besides its model: a forward proxy for one stage, which decides, bounds and records.

`EgressProxy` serves a UNIX socket, which is all that says whose connections arrive there. See `proxy`.
"""

from voidbox_lab.gateway.egress.audit import Record
from voidbox_lab.gateway.egress.bounds import Bounds
from voidbox_lab.gateway.egress.proxy import EgressProxy

__all__ = ["Bounds", "EgressProxy", "Record"]

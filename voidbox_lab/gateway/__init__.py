"""The gateway to models: keys stay on the host, stages get tokens, every call is metered.

`Gateway` is an ASGI application; `serving_unix` puts it on a socket. See `app`.
"""

from voidbox_lab.gateway.app import Gateway, OnCall
from voidbox_lab.gateway.keys import Keys
from voidbox_lab.gateway.limits import Limits
from voidbox_lab.gateway.prices import cost_usd
from voidbox_lab.gateway.scripted import Library
from voidbox_lab.gateway.serve import serving, serving_unix
from voidbox_lab.gateway.session import StageSession

__all__ = ["Gateway", "Keys", "Library", "Limits", "OnCall", "StageSession", "cost_usd", "serving", "serving_unix"]

"""The decision: whether a stage's policy lets a connection out, and to which addresses exactly.

A name is resolved once, here, on the host, and the connection goes to one of the very addresses that were looked
at: what the name stands for a moment later (DNS rebinding) does not matter. A name that no pattern allows is not
even resolved, since a query to its owner's name server would be a way out of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from voidbox_lab.gateway.egress.addresses import Address, Kind, kind, plain
from voidbox_lab.gateway.egress.own import is_own
from voidbox_lab.gateway.egress.targets import Target
from voidbox_lab.spec import Policy
from voidbox_lab.spec.egress import Destination, parse_destination

Resolve = Callable[[str], Awaitable[Sequence[Address]]]
"""All addresses of a name, best first. Raises OSError for a name that has none."""
WEB_PORTS = (80, 443)
PRIVATE = "private-address"
"""The rule that refuses what is not public."""
_OWN = Kind("an address of the host itself", None)
_UNTOLD = Kind("an address that may be the host's own, which its kernel does not tell", None)


@dataclass(frozen=True)
class Verdict:
    """What was decided, and by which rule."""

    what: Literal["allowed", "denied", "failed"]
    rule: str
    """A pattern of the policy, or a profile, or `PRIVATE`."""
    reason: str = ""
    """Why not, for the guest; it names no address that the guest did not."""
    addresses: tuple[Address, ...] = ()
    """Where to connect to, in this order; if denied, what was refused."""


class Rules:
    """The rules of one stage.

    Args:
        own: tells this host's own addresses; OSError if it cannot.
    """

    def __init__(self, policy: Policy, resolve: Resolve, own: Callable[[Address], bool] = is_own) -> None:
        self._profile = policy.network
        self._patterns = [(text, parse_destination(text)) for text in policy.egress]
        self._resolve, self._own = resolve, own

    async def judge(self, target: Target) -> Verdict:
        """Decide on `target`; waits for the name's resolution, which whoever calls bounds."""
        rule = self._rule(target)
        if target.address is not None:
            addresses: Sequence[Address] = [target.address]
        elif rule is None and not self._ranges_at(target.port):
            return self._not_allowed(target)
        else:
            try:
                addresses = [plain(a) for a in await self._resolve(target.host)]
            except (OSError, UnicodeError):
                addresses = []
            if not addresses:
                return Verdict("failed", rule or self._profile, f"the name {target.host} has no address")
        good: list[Address] = []
        used = ""
        for address in addresses:
            if (allows := self._allows(address, target, rule)) is not None:
                used = used or allows
                good.append(address)
        if good:
            return Verdict("allowed", used, addresses=tuple(dict.fromkeys(good)))
        refused = self._kind(addresses[0])
        if refused is None:
            return self._not_allowed(target)
        return Verdict("denied", PRIVATE, _refusal(target, refused), tuple(addresses))

    def _rule(self, target: Target) -> str | None:
        """The rule by which `target` may be reached where it is public; None: none."""
        if self._profile in {"monitored", "open"}:
            return self._profile
        if self._profile == "proxy-only":
            return self._profile if target.port in WEB_PORTS else None
        for text, pattern in self._patterns:
            # A pattern of a name never stands for an address, however it ends.
            if (target.address is None or pattern.host is None) and pattern.names(target.host, target.port):
                return text
        return None

    def _ranges_at(self, port: int) -> bool:
        """Whether a name could be at an address that is named; never with an allowlist, where names are."""
        return self._profile != "allowlist" and any(
            d.network is not None and d.port in {None, port} for _, d in self._patterns
        )

    def _allows(self, address: Address, target: Target, rule: str | None) -> str | None:
        """The rule by which `target` may be reached at `address`."""
        found = self._kind(address)
        named = [(text, d) for text, d in self._patterns if d.covers(address, target.port)]
        if found is not None:
            # Besides the name, if there is one: whoever allows a name need not know what is behind it.
            if rule is None and target.address is None and self._profile == "allowlist":
                return None
            return next((text for text, d in named if found.ever and _explicit(d, found)), None)
        if rule is not None:
            return rule
        if target.address is None and self._profile == "allowlist":
            return None
        return named[0][0] if named else None

    def _kind(self, address: Address) -> Kind | None:
        if (found := kind(address)) is not None:
            return found
        try:
            return _OWN if self._own(address) else None
        except OSError:
            return _UNTOLD

    def _not_allowed(self, target: Target) -> Verdict:
        if self._profile == "proxy-only":
            why = f"{target} is not at port 80 or 443, all that this stage's network 'proxy-only' allows"
        else:
            why = f"{target} is not in this stage's egress allowlist; add it to the policy's egress"
        return Verdict("denied", self._profile, why)


def _explicit(pattern: Destination, refused: Kind) -> bool:
    """Whether `pattern` means just that kind of address: 0.0.0.0/0 does not name what is private."""
    network, block = pattern.network, refused.block
    assert network is not None, "it covers an address"
    if block is None:
        return network.num_addresses == 1
    return network.version == block.version and network.prefixlen >= block.prefixlen


def _refusal(target: Target, refused: Kind) -> str:
    at = "is" if target.address is not None else "is at"
    if not refused.ever:
        return f"{target} {at} {refused.words}, which no policy allows"
    what = str(target) if target.address is not None else "that address or its range"
    return f"{target} {at} {refused.words}; add {what} to the policy's egress to allow it"

"""The guest's routes, rules, next hops and static neighbours.

`change_routes` states what shall be, so doing one twice is doing it once; after a failure all is as
before. A thousand routes are one request, and the guest may be emulated: nothing is asked of the
kernel that need not be, and what is asked goes in batches.
"""

import binascii
import errno
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tapwright.agent.guest.refusal import RefusedError
from tapwright.linux import links, routes
from tapwright.linux.netlink import Netlink, NetlinkError, record
from tapwright.linux.routes import Route

_TOLD = 20
_IPV6_METRIC = 1024  # IP6_RT_PRIO_USER, include/net/ip6_route.h


def change_routes(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Remove some routes, then add some; with `append` after others of the same destination and
    metric. Removing what is not there, and adding what is, is no failure."""
    remove = _routes(nl, _there(nl, request.get("remove", [])))
    add = _routes(nl, request.get("add", []))
    keys = set(map(_route_key, remove))
    # The kernel would remove by a pattern, and take another route for one that is gone.
    present = routes.listing(nl, {route.family for route in remove})
    gone = [route for route in present if _route_key(route) in keys]
    _change(nl, gone, add, bool(request.get("append")))
    return {}


def replay(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Do `messages`: requests of rtnetlink that are encoded already, in base64, with a sequence
    number each. Returns `refused`, [number, errno, the kernel's words] of each that was."""
    refused = nl.replay(binascii.a2b_base64(request["messages"]))
    # Enough to be told of.
    told = [[number, code, words[:200]] for number, code, words in refused[:_TOLD]]
    return {"refused": told + [[number, code, ""] for number, code, _ in refused[_TOLD:]]}


class _Devices(dict[str, int]):
    """Indexes of interfaces by their names, each asked for once."""

    def __init__(self, nl: Netlink) -> None:
        super().__init__()
        self._nl = nl

    def __missing__(self, name: str) -> int:
        link = links.find(self._nl, name)
        if link is None:
            raise RefusedError(f"the guest has no interface called {name!r}")
        self[name] = link.index
        return link.index


def _there(nl: Netlink, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose interface there is: what was on others has gone with them."""
    names = {link.name for link in links.listing(nl)} if items else set()
    return [item for item in items if item["device"] in names]


def _routes(nl: Netlink, items: Iterable[dict[str, Any]]) -> list[Route]:
    devices = _Devices(nl)
    return [record(Route, {**item, "device": devices[item["device"]]}) for item in items]


def _change(nl: Netlink, remove: list[Route], add: list[Route], append: bool = False) -> None:
    """Do both; after a failure the routes are as before."""
    removed: list[Route] = []
    added: list[Route] = []
    try:
        refusals = routes.remove_many(nl, remove)
        removed += [route for route, refusal in zip(remove, refusals, strict=True) if not refusal]
        for refusal in filter(None, refusals):
            raise refusal
        _add(nl, add, added, append)
    except Exception:
        routes.remove_many(nl, added[::-1])
        _add(nl, removed, [], append=True)
        raise


def _add(nl: Netlink, some: list[Route], added: list[Route], append: bool) -> None:
    """Add routes, those that were not there before to `added` too.

    A gateway must be reachable on a link when its route is added, so routes without one go first.
    """
    some = sorted(some, key=lambda route: route.gateway is not None)
    present: _Present | None = None
    failure: NetlinkError | None = None
    for route, refusal in zip(some, routes.add_many(nl, some, append), strict=True):
        if not refusal:
            added.append(route)
            continue
        if refusal.errno == errno.EEXIST:
            present = present or _present(nl)
            if present.has(route):
                continue
        failure = failure or refusal
    if failure:
        raise failure


class _Present(NamedTuple):
    """The guest's routes by their keys, and those of the kernel as (destination, device)."""

    keys: set[tuple[Any, ...]]
    kernels: set[tuple[str, int]]

    def has(self, route: Route) -> bool:
        """Whether the very route is there, or an address has brought it with it."""
        place = route.destination, route.device
        return _route_key(route) in self.keys or (not route.gateway and place in self.kernels)


def _present(nl: Netlink) -> _Present:
    found = routes.listing(nl)
    kernels = [route for route in found if route.protocol == routes.RTPROT_KERNEL]
    return _Present(set(map(_route_key, found)), {(r.destination, r.device) for r in kernels})


def _route_key(route: Route) -> tuple[Any, ...]:
    """A route as the kernel would report it, to compare with those that are there: whoever made
    it."""
    destination, device, gateway, source, scope, metric, table, onlink, _, mtu, advmss = route
    if ":" in destination:
        scope, metric = 0, metric or _IPV6_METRIC
    return destination, device, gateway, source, scope, metric, table, onlink, mtu, advmss

"""The guest's routes, rules, next hops and static neighbours.

`change_routes` states the wanted result, so doing it twice is doing it once; after a failure all is
as before. One request may have a thousand routes, and the guest's processors may be emulated. So
the agent asks the kernel no more than it must, and in batches.
"""

import binascii
import errno
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tapwright.agent.guest.refusal import RefusedError
from tapwright.linux import links, routes
from tapwright.linux.netlink import Netlink, NetlinkError, record
from tapwright.linux.routes import Route

_EXPLAINED = 20
_IPV6_METRIC = 1024  # IP6_RT_PRIO_USER, include/net/ip6_route.h


def change_routes(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Remove some routes, then add some. With `append`, add them after others of the same
    destination and metric. Removing a missing route, or adding a present one, is no failure."""
    remove = _routes(nl, _there(nl, request.get("remove", [])))
    add = _routes(nl, request.get("add", []))
    keys = set(map(_route_key, remove))
    # The kernel would remove a route by a pattern, and so take another route for a missing one.
    present = routes.listing(nl, {route.family for route in remove})
    gone = [route for route in present if _route_key(route) in keys]
    _change(nl, gone, add, bool(request.get("append")))
    return {}


def replay(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Do `messages`: encoded rtnetlink requests in base64, with a sequence number each. Returns
    `refused`: [number, errno, the kernel's words] of each message that the kernel refused."""
    refused = nl.replay(binascii.a2b_base64(request["messages"]))
    # The first refusals have their reasons; the caller shows no more.
    explained = [[number, code, words[:200]] for number, code, words in refused[:_EXPLAINED]]
    return {"refused": explained + [[number, code, ""] for number, code, _ in refused[_EXPLAINED:]]}


class _Devices(dict[str, int]):
    """Indexes of interfaces by their names. Each one is looked up once."""

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
    """Return the items whose interface exists; routes on a missing interface went with it."""
    names = {link.name for link in links.listing(nl)} if items else set()
    return [item for item in items if item["device"] in names]


def _routes(nl: Netlink, items: Iterable[dict[str, Any]]) -> list[Route]:
    devices = _Devices(nl)
    return [record(Route, {**item, "device": devices[item["device"]]}) for item in items]


def _change(nl: Netlink, remove: list[Route], add: list[Route], append: bool = False) -> None:
    """Remove and add routes. After a failure the routes are as before."""
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
    """Add routes, and append the new ones to `added`.

    A gateway must be reachable on a link when its route is added, so routes without a gateway go
    first.
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
    """The guest's routes by their keys, and the kernel's own routes as (destination, device)."""

    keys: set[tuple[Any, ...]]
    kernels: set[tuple[str, int]]

    def has(self, route: Route) -> bool:
        """Whether exactly this route is present, or came with an address."""
        place = route.destination, route.device
        return _route_key(route) in self.keys or (not route.gateway and place in self.kernels)


def _present(nl: Netlink) -> _Present:
    found = routes.listing(nl)
    kernels = [route for route in found if route.protocol == routes.RTPROT_KERNEL]
    return _Present(set(map(_route_key, found)), {(r.destination, r.device) for r in kernels})


def _route_key(route: Route) -> tuple[Any, ...]:
    """Return a route as the kernel would report it, for comparison with present routes of any
    origin."""
    if ":" in route.destination:
        route = route._replace(scope=0, metric=route.metric or _IPV6_METRIC)
    return route._replace(protocol=0)

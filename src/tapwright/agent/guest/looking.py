"""The guest's network as seen from within, in one answer of bounded size, for people who want to
know where packets go."""

import itertools
from collections.abc import Iterator
from typing import Any

from tapwright.linux import addresses, counted, routes
from tapwright.linux.netlink import Netlink

MOST_LINKS, MOST_ADDRESSES, MOST_ROUTES, MOST_NEIGHBOURS = 64, 512, 512, 256


def look(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Return interfaces with their addresses and counters, unicast routes of all tables but the
    local one, and neighbours, with devices by name. Each list has a bound; `cut` names the lists
    that were cut."""
    seen = counted.interfaces(nl, MOST_LINKS)
    of_all = addresses.listing_with_state(nl, MOST_ADDRESSES)
    neighbours = counted.neighbours(nl, MOST_NEIGHBOURS)
    known_routes = list(itertools.islice(_routes(nl), MOST_ROUTES + 1))
    names = {one.link.index: one.link.name for one in seen}
    too_many = {
        "interfaces": len(seen) > MOST_LINKS,
        "addresses": len(of_all) > MOST_ADDRESSES,
        "routes": len(known_routes) > MOST_ROUTES,
        "neighbours": len(neighbours) > MOST_NEIGHBOURS,
    }
    return {
        "interfaces": [
            {
                "name": one.link.name,
                "mac": one.link.mac,
                "mtu": one.link.mtu,
                "up": one.link.is_up,
                "carrier": one.has_carrier,
                "kind": one.link.kind,
                "loopback": one.link.is_loopback,
                "addresses": [
                    str(address)
                    for index, _, address in of_all[:MOST_ADDRESSES]
                    if index == one.link.index
                ],
                "counters": one.counters._asdict(),
            }
            for one in seen[:MOST_LINKS]
        ],
        "routes": [
            {
                "destination": route.destination,
                "gateway": route.gateway or "",
                "device": names.get(route.device, ""),
                "metric": route.metric,
                "table": route.table,
            }
            for route in known_routes[:MOST_ROUTES]
        ],
        "neighbours": [
            {**known._asdict(), "device": names.get(known.device, "")}
            for known in neighbours[:MOST_NEIGHBOURS]
        ],
        "cut": [name for name, is_cut in too_many.items() if is_cut],
    }


def _routes(nl: Netlink) -> Iterator[routes.Route]:
    for family in routes.FAMILIES:
        payload = routes.request_of(family)
        for body in nl.dump("list routes", routes.RTM_GETROUTE, payload, at_most=MOST_ROUTES):
            yield from (r for r in routes.decode(body) if r.table != routes.TABLE_LOCAL)

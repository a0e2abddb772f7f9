"""Reads the kernel's tables of one network namespace, once; filters and queues only on demand.

This module changes nothing.
"""

import contextlib
from collections.abc import Iterator

from tapwright.linux import addresses, counted, netns, routes
from tapwright.linux.addresses import Address
from tapwright.linux.counted import Filter, Known, Queue, Seen
from tapwright.linux.netlink import Netlink, NetlinkError
from tapwright.linux.routes import Route

MOST_ADDRESSES, MOST_NEIGHBOURS = 8192, 4096


class View:
    """The namespace at `path`; an empty path is the caller's own namespace."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self.path = path
        with netns.entered(path or netns.OWN):
            self._nl = Netlink()
        self.interfaces: dict[int, Seen] = {
            seen.link.index: seen for seen in counted.interfaces(self._nl)
        }
        self._addresses: dict[int, list[Address]] = {}
        found = addresses.listing_with_state(self._nl, MOST_ADDRESSES)
        for index, _, address in found[:MOST_ADDRESSES]:
            self._addresses.setdefault(index, []).append(address)
        self.routes: list[Route] = routes.listing(self._nl)
        self.neighbours: list[Known] = counted.neighbours(self._nl, MOST_NEIGHBOURS)

    def close(self) -> None:
        self._nl.close()

    def addresses(self, index: int) -> list[Address]:
        """Return the addresses of an interface, in the kernel's order."""
        return self._addresses.get(index, [])

    def named(self, name: str) -> Seen | None:
        return next((s for s in self.interfaces.values() if name and s.link.name == name), None)

    def with_address(self, address: str) -> Seen | None:
        for index, some in self._addresses.items():
            if any(one.address == address for one in some):
                return self.interfaces.get(index)
        return None

    def name_of(self, index: int) -> str:
        seen = self.interfaces.get(index)
        return seen.link.name if seen else f"interface {index}"

    def filters(self, index: int) -> list[Filter]:
        """Return the ingress filters of an interface; none if the interface has gone meanwhile."""
        with contextlib.suppress(NetlinkError):
            return counted.ingress_filters(self._nl, index)
        return []

    def queues(self, index: int) -> list[Queue]:
        """Return the qdiscs of an interface that have counted packets."""
        with contextlib.suppress(NetlinkError):
            return counted.queues(self._nl, index)
        return []

    def default_routes(self) -> list[Route]:
        """Return the default routes of the main table, in the order in which the kernel prefers
        them within each family."""
        found = [
            route
            for route in self.routes
            if route.destination in ("0.0.0.0/0", "::/0") and route.table == routes.TABLE_MAIN
        ]
        return sorted(found, key=lambda route: (":" in route.destination, route.metric))


@contextlib.contextmanager
def view(path: str) -> Iterator[View]:
    """Raises OSError."""
    made = View(path)
    try:
        yield made
    finally:
        made.close()

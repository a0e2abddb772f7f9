"""The counters of the interfaces on each NIC's way, at each of its points on the host."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from tapwright.endpoint import kinds
from tapwright.endpoint.companion import name_of
from tapwright.linux import netns, peers
from tapwright.linux.counted import Counters, Seen, interfaces
from tapwright.linux.netlink import Netlink
from tapwright.state import joins
from tapwright.state.joins import Join
from tapwright.state.record import Record


@dataclass(frozen=True)
class Counted:
    """`point` is tap, interface, or host; `device` the interface's name there."""

    nic: str
    point: str
    device: str
    counters: Counters


class Host:
    """The host's interfaces, read once."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._fd = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
        with Netlink() as nl:
            self._by_index = {seen.link.index: seen for seen in interfaces(nl)}

    def close(self) -> None:
        os.close(self._fd)

    def counted(self, record: Record) -> list[Counted]:
        """Return the counters of a sandbox's NICs. Raises OSError."""
        found: list[Counted] = []
        looked: dict[str, tuple[dict[int, Seen], int]] = {}
        for nic in record.interfaces:
            join = joins.of_nic(record, nic)
            if join and join.netns:
                if join.netns not in looked:
                    looked[join.netns] = self._inside(join.netns)
                found += self._of_join(nic.name, join, *looked[join.netns])
        return found

    def _inside(self, path: str) -> tuple[dict[int, Seen], int]:
        """Return the interfaces of a namespace, by index, and the namespace's number for the
        host's."""
        if netns.is_own(path):
            return self._by_index, 0
        with netns.entered(path), Netlink() as nl:
            by_index = {seen.link.index: seen for seen in interfaces(nl)}
            return by_index, peers.number_of(nl, self._fd)

    def _of_join(
        self, nic: str, join: Join, inside: dict[int, Seen], number: int
    ) -> Iterator[Counted]:
        def at(point: str, seen: Seen) -> Counted:
            return Counted(nic, point, seen.link.name, seen.counters)

        joined = inside.get(join.index)
        if kinds.has_companion(join.kind):
            beside = name_of(join.index)
            tap = next((seen for seen in inside.values() if seen.link.name == beside), None)
            if joined:
                yield at("interface", joined)
        else:
            tap = joined
        if tap:
            yield at("tap", tap)
        if (
            joined
            and joined.link.kind in peers.KINDS
            and joined.peer_netns == number
            and (end := self._by_index.get(joined.peer))
        ):
            yield at("host", end)

"""The counters of the interfaces on each NIC's way, at each of its points on the host."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from tapwright.endpoint import kinds
from tapwright.endpoint.companion import name_of
from tapwright.linux import netns, peers
from tapwright.linux.counted import Counters, Seen, interfaces
from tapwright.linux.netlink import Netlink
from tapwright.state.record import Nic, Record

_BESIDE = ("tcfilter", "macvtap", "none")
_CONNECTED = ("veth", "macvlan", "macvtap")


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
            for entry in record.held:
                if _is_of(entry, nic) and "netns" in entry:
                    path = entry["netns"]
                    if path not in looked:
                        looked[path] = self._inside(path)
                    found += self._of_entry(nic, entry["kind"], entry["index"], *looked[path])
        return found

    def _inside(self, path: str) -> tuple[dict[int, Seen], int]:
        """Return the interfaces of a namespace, by index, and the namespace's number for the
        host's."""
        if netns.is_own(path):
            return self._by_index, 0
        with netns.entered(path), Netlink() as nl:
            by_index = {seen.link.index: seen for seen in interfaces(nl)}
            return by_index, peers.number_of(nl, self._fd)

    def _of_entry(
        self, nic: Nic, kind: str, index: int, inside: dict[int, Seen], number: int
    ) -> Iterator[Counted]:
        def at(point: str, seen: Seen) -> Counted:
            return Counted(nic.name, point, seen.link.name, seen.counters)

        joined = inside.get(index)
        if kind in _BESIDE:
            beside = name_of(index)
            tap = next((seen for seen in inside.values() if seen.link.name == beside), None)
            if joined:
                yield at("interface", joined)
        else:
            tap = joined
        if tap:
            yield at("tap", tap)
        if (
            joined
            and joined.link.kind in _CONNECTED
            and joined.peer_netns == number
            and (end := self._by_index.get(joined.peer))
        ):
            yield at("host", end)


def _is_of(entry: dict[str, object], nic: Nic) -> bool:
    if not kinds.is_endpoint(entry):
        return False
    return entry.get("follows") == nic.index and (bool(nic.index) or entry.get("nic") == nic.name)

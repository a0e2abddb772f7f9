"""The points on the way of a NIC's frames, from the guest to the host, by the sandbox's journal."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tapwright.endpoint import kinds
from tapwright.endpoint.companion import name_of
from tapwright.errors import NetworkError, UsageError
from tapwright.linux import links, netns, peers
from tapwright.linux.files import closing
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.state import joins
from tapwright.state.record import Nic, Record

GUEST, TAP, INTERFACE, HOST = PLACES = ("guest", "tap", "interface", "host")
"""In the order in which a frame from the guest passes them."""


@dataclass(frozen=True)
class Point:
    """An interface where packets are captured: `device` in the namespace at `netns`, or for `guest`
    in the guest. `nic` is the guest's name of the NIC, `description` says what the interface is."""

    at: str
    nic: str
    device: str
    mac: str
    description: str
    netns: str = ""

    @property
    def name(self) -> str:
        return f"{self.at}:{self.device}"


def of_sandbox(record: Record, wanted: Collection[str] = (), nic: str = "") -> list[Point]:
    """Return the points of all NICs, or of one; at all places, or at the `wanted` ones.

    Raises UsageError for an unknown NIC, and for a place that has no interface; NetworkError.
    """
    nics = [each for each in record.interfaces if nic in ("", each.name)]
    if not nics:
        names = ", ".join(each.name for each in record.interfaces) or "none"
        raise UsageError(
            f"sandbox {record.id!r} has no NIC {nic!r}; there are: {names}"
            if nic
            else f"sandbox {record.id!r} has no NIC"
        )
    found: dict[tuple[str, str], Point] = {}
    try:
        for each in nics:
            for point in _of_nic(record, each):
                if not wanted or point.at in wanted:
                    # NICs may share an interface on the host, such as the parent of two macvlans.
                    found.setdefault((point.netns, point.name), point)
    except OSError as error:
        raise NetworkError(f"the sandbox's network can't be looked at: {error.strerror}") from None
    for place in wanted:
        if not any(point.at == place for point in found.values()):
            raise UsageError(
                f"--at {place}: {_WHY_NOT[place]}; there are: "
                + ", ".join(dict.fromkeys(point.at for point in of_sandbox(record, (), nic)))
            )
    return list(found.values())


_WHY_NOT = {
    GUEST: "the guest has no NIC",
    TAP: "the frames of a vhost-user NIC pass no TAP",
    INTERFACE: "no interface of a namespace is joined with the sandbox's NICs",
    HOST: "the sandbox's NICs have no other end in this host's namespace",
}


def _of_nic(record: Record, nic: Nic) -> Iterator[Point]:
    def point(at: str, link: Link, description: str, path: str) -> Point:
        return Point(at, nic.name, link.name, link.mac, description, path)

    words = f"NIC {nic.name} in the guest of sandbox {record.id}"
    yield Point(GUEST, nic.name, nic.name, nic.mac, words)
    join = joins.of_nic(record, nic)
    if join is None or not join.netns:
        return
    path, has_companion = join.netns, kinds.has_companion(join.kind)
    where = "the host" if netns.is_own(path) else f"namespace {path}"
    with netns.entered(path), Netlink() as nl:
        joined = links.at(nl, join.index)
        tap = links.find(nl, name_of(join.index)) if has_companion else joined
        bridge = links.at(nl, tap.master) if tap and tap.master else None
    if tap:
        what = "macvtap" if tap.kind == "macvtap" else "TAP"
        yield point(TAP, tap, f"{what} of the guest's {nic.name}, in {where}", path)
    if joined and has_companion:
        words = f"interface {joined.name} in {where}, which the guest's {nic.name} stands for"
        yield point(INTERFACE, joined, words, path)
    if joined and (end := _on_host(path, joined)):
        words = f"{end.kind or 'NIC'} {end.name} on the host, other end of {joined.name}"
        yield point(HOST, end, words, netns.OWN)
    elif bridge and bridge.kind == "bridge" and netns.is_own(path):
        yield point(HOST, bridge, f"bridge {bridge.name} on the host", netns.OWN)


def _on_host(path: str, link: Link) -> Link | None:
    """Return the interface of this process's namespace to which one of the namespace is
    connected."""
    if link.kind not in peers.KINDS or netns.is_own(path):
        return None
    own = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
    with closing(own), netns.entered(path), Netlink() as nl:
        index = peers.other_end(nl, link.index, own)
    if not index:
        return None
    with Netlink() as nl:
        return links.at(nl, index)

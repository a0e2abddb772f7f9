"""Follows a way from an interface of a namespace to the wire: peer, bridge, parent, gateway, and
the host's NIC."""

import shutil
from dataclasses import dataclass

from tapwright.diagnosis import way
from tapwright.diagnosis.plugins import Made
from tapwright.diagnosis.view import View
from tapwright.diagnosis.way import Count, Edge, Point, Way
from tapwright.endpoint import host_tap
from tapwright.errors import NetworkError
from tapwright.linux import netlink
from tapwright.linux.counted import Counters, Seen

ON_ANOTHER = ("macvlan", "macvtap", "ipvlan", "ipvtap", "vlan")
"""The kinds of interfaces that have a parent interface."""
_BRIDGE_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
# include/uapi/linux/if_link.h: IFLA_BRPORT_STATE, _MODE (hairpin), _ISOLATED.
_PORT_STATE, _PORT_HAIRPIN, _PORT_ISOLATED = 1, 4, 33
_FORWARDING = 3
_OVS_SECONDS = 3
_MOST_POINTS = 16


def count(counters: Counters, sent: bool) -> Count:
    """Return what an interface sent, or what it received."""
    if sent:
        return Count(
            *(counters.tx_bytes, counters.tx_packets),
            *(counters.tx_errors, counters.tx_dropped),
        )
    return Count(
        *(counters.rx_bytes, counters.rx_packets),
        *(counters.rx_errors, counters.rx_dropped),
    )


def point_of(kind: str, seen: Seen, view: View, place: str, made_by: str = "") -> Point:
    """Return an interface as a point."""
    link = seen.link
    state = way.DOWN if not link.is_up else way.UP if seen.has_carrier else way.NO_CARRIER
    return Point(
        kind=kind,
        name=link.name,
        place=place,
        state=state,
        mac=link.mac,
        mtu=link.mtu,
        addresses=[str(address) for address in view.addresses(link.index)],
        made_by=made_by,
        driver=link.kind,
        index=link.index,
        queue_dropped=sum(queue.dropped for queue in view.queues(link.index)),
    )


@dataclass
class Outward:
    """Continues the way of a NIC from the interface that is its last point. `inside` is the
    sandbox's namespace, `host` the host's; `gateways` are those of the guest's default routes."""

    way: Way
    inside: View
    host: View
    made: Made | None
    gateways: list[str]

    def follow(self, seen: Seen, view: View) -> None:
        """Add the points beyond an interface of a namespace."""
        is_peer = False
        for _ in range(_MOST_POINTS):
            if seen.link.is_port:
                self._through_bridge(seen, view)
                return
            if self._is_in_ovs(seen, view):
                return
            is_one_end = seen.link.kind == "veth" and not is_peer
            if not is_one_end and seen.link.kind not in ON_ANOTHER:
                self._beyond(seen, view)
                return
            beyond = self._other(seen, view)
            if beyond is None:
                self.way.points[-1].facts.append("what it leads to is in another namespace")
                return
            if is_one_end:
                edge = Edge("veth", *_both(seen.counters, sends_outward=True))
                self._add(way.PEER, *beyond, edge)
            else:
                edge = Edge(f"{seen.link.kind} on", *_both(seen.counters, sends_outward=True))
                self._add(way.PARENT, *beyond, edge)
            is_peer = is_one_end
            seen, view = beyond

    def _add(self, kind: str, seen: Seen, view: View, edge: Edge) -> Point:
        point = point_of(kind, seen, view, self._place(view), self._maker(seen, view))
        self.way.points.append(point)
        self.way.edges.append(edge)
        return point

    def _place(self, view: View) -> str:
        return way.ON_HOST if view is self.host else self.inside.path

    def _maker(self, seen: Seen, view: View) -> str:
        made = self.made
        named = made and view is self.host and seen.link.name in made.interfaces
        return made.maker if made and named else ""

    def _other(self, seen: Seen, view: View) -> tuple[Seen, View] | None:
        """Return the peer or the parent of an interface; None if it is in a namespace that is
        neither the sandbox's nor the host's."""
        places = [view] if seen.peer_netns is None else [self.host, self.inside]
        for place in places:
            other = place.interfaces.get(seen.peer)
            if other is None or (seen.peer_netns is not None and place is view):
                continue
            # Each namespace has its own numbers for others, so the other end must agree.
            if seen.link.kind == "veth" and other.peer != seen.link.index:
                continue
            return other, place
        return None

    def _through_bridge(self, port: Seen, view: View) -> None:
        bridge = view.interfaces.get(port.link.master)
        if bridge is None:
            return
        edge = Edge("port of", *_both(port.counters, sends_outward=False))
        of_port = self.way.points[-1]
        _add_facts_of_port(of_port, port)
        if bridge.link.kind == "openvswitch" or bridge.link.name == "ovs-system":
            of_port.facts.append("port of the kernel's Open vSwitch")
            self._is_in_ovs(port, view)
            return
        self._add(way.BRIDGE, bridge, view, edge)
        self._beyond(bridge, view)

    def _is_in_ovs(self, seen: Seen, view: View) -> bool:
        """Whether an interface is a port of Open vSwitch; if so, add the bridge."""
        if view is not self.host or not shutil.which("ovs-vsctl"):
            return False
        try:
            name = host_tap.ovs_bridge_of(seen.link.name, _OVS_SECONDS)
            tag = host_tap.ovs_tag_of(seen.link.name, _OVS_SECONDS) if name else ""
        except NetworkError:
            return False  # no Open vSwitch answers; most hosts run none
        if not name:
            return False
        if tag:
            self.way.points[-1].facts.append(f"VLAN {tag}")
        edge = Edge("port of", *_both(seen.counters, sends_outward=False))
        if local := view.named(name):
            self._add(way.OVS, local, view, edge)
            self._beyond(local, view)
        else:
            self.way.points.append(Point(way.OVS, name, way.ON_HOST))
            self.way.edges.append(edge)
        return True

    def _beyond(self, last: Seen, view: View) -> None:
        """Add the gateway, if the guest has one on this NIC, and the host's NIC."""
        hardware = [
            seen
            for seen in view.interfaces.values()
            if seen.link.master == last.link.index and is_hardware(seen)
        ]
        if is_hardware(last) and view is self.host:
            if self.way.points[-1].kind == way.PARENT:
                self.way.points[-1].kind = way.HOST_NIC
            self._gateway(last, view, outside=True)
            return
        outside = bool(hardware) and not any(map(view.with_address, self.gateways))
        if outside:
            self._add(way.HOST_NIC, hardware[0], view, _of_nic("port", hardware[0]))
        self._gateway(last, view, outside)
        if not outside and view is self.host and self.gateways:
            self._uplink()

    def _gateway(self, last: Seen, view: View, outside: bool) -> None:
        if not self.gateways:
            return
        point = Point(way.GATEWAY, " ".join(self.gateways), way.ON_HOST)
        if self.made and set(self.gateways) & set(self.made.gateways):
            point.made_by = self.made.ipam
        for gateway in self.gateways:
            holder = view.with_address(gateway)
            if holder:
                point.state = way.UP
                point.facts.append(f"{gateway} is an address of {holder.link.name}")
        if outside:
            point.place = "network"
        counted = _both(last.counters, sends_outward=False) if not outside else (None, None)
        self.way.points.append(point)
        self.way.edges.append(
            Edge("out to the network" if outside else "the host's own end", *counted)
        )

    def _uplink(self) -> None:
        """Add the NIC of the host's own default route."""
        devices = dict.fromkeys(route.device for route in self.host.default_routes())
        for index in list(devices)[:1]:
            if seen := self.host.interfaces.get(index):
                point = self._add(way.HOST_NIC, seen, self.host, _of_nic("the host routes", seen))
                via = [r.gateway for r in self.host.default_routes() if r.device == index]
                point.facts += [f"default via {gateway}" for gateway in via if gateway]


def is_hardware(seen: Seen) -> bool:
    """Whether an interface is a NIC: the kernel gives it no kind."""
    return not seen.link.kind and not seen.link.is_loopback


def _both(counters: Counters, sends_outward: bool) -> tuple[Count, Count]:
    """Return (outward, inward) of an interface that sends away from the guest, or towards it."""
    return count(counters, sends_outward), count(counters, not sends_outward)


def _of_nic(how: str, nic: Seen) -> Edge:
    return Edge(how, *_both(nic.counters, sends_outward=True))


def _add_facts_of_port(point: Point, port: Seen) -> None:
    found = netlink.attributes(port.port)
    state = found.get(_PORT_STATE, b"\3")[0]
    if state != _FORWARDING and state < len(_BRIDGE_PORT_STATES):
        point.facts.append(f"port is {_BRIDGE_PORT_STATES[state]}")
    if found.get(_PORT_HAIRPIN, b"\0") != b"\0":
        point.facts.append("hairpin")
    if found.get(_PORT_ISOLATED, b"\0") != b"\0":
        point.facts.append("isolated port")

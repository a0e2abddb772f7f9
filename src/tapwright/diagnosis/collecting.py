"""Finds the way of each NIC of a sandbox. The sources are the record and the journal, the kernel's
tables in the sandbox's namespace and on the host, CNI's cache, and answers of guest and QEMU.

This module changes nothing, and waits for the supervisor's answer alone (a few seconds).
"""

import contextlib
import re
import time
from collections.abc import Sequence
from typing import Any

from tapwright.diagnosis import plugins, way
from tapwright.diagnosis.outward import Outward, count, point_of
from tapwright.diagnosis.plugins import Made
from tapwright.diagnosis.view import View, view
from tapwright.diagnosis.way import Count, Edge, Filter, Picture, Point, Route, Way
from tapwright.endpoint import companion
from tapwright.errors import TapwrightError
from tapwright.linux.counted import Counters, Seen
from tapwright.linux.routes import TABLE_MAIN
from tapwright.sandbox import client
from tapwright.state import joins
from tapwright.state.joins import Join
from tapwright.state.record import RUNNING, Nic, Record
from tapwright.state.registry import Sandbox

_AT_ONCE = 16
_LOOK_SECONDS = 8.0
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
_DEFAULT = ("0.0.0.0/0", "::/0")


def picture(
    sandbox: Sandbox, host: View | None = None, guest_seconds: float | None = None
) -> Picture:
    """Return the picture of a sandbox, without complaints (`checking.check` adds them). The picture
    says in words what could not be read. `host` is a view of the host's namespace, if the caller
    has one already. The guest has `guest_seconds` for its answer, if these are fewer than the
    supervisor's own limit.

    Raises OSError when the host's namespace can't be read.
    """
    found = Picture(sandbox.id, sandbox.status, time.time(), problem=sandbox.problem)
    record = sandbox.record
    if record is None:
        return found
    found.netns, found.accelerator = record.netns, record.accelerator
    found.networks = [network.name for network in record.spec.networks]
    if sandbox.status == RUNNING:
        _ask(sandbox, found, guest_seconds)
    else:
        found.guest_failure = found.qemu_failure = f"the sandbox is {sandbox.status}"
    attachments, problems = plugins.attachments(record)
    found.failures += problems
    with contextlib.ExitStack() as stack:
        own = host or stack.enter_context(view(""))
        try:
            inside = stack.enter_context(view(record.netns)) if record.netns else own
        except OSError as error:
            found.failures.append(
                f"the sandbox's network namespace {record.netns} can't be looked at: "
                f"{error.strerror}"
            )
            inside = None
        for nic in record.interfaces:
            found.ways.append(_Collecting(found, record, inside, own, attachments, nic).way())
    return found


def pictures(sandboxes: Sequence[Sandbox]) -> list[Picture]:
    """Return the pictures of several sandboxes, in their order. All are asked at the same time, so
    a sandbox that does not answer delays no other. Raises as `picture` does."""
    from concurrent.futures import ThreadPoolExecutor

    def of(sandbox: Sandbox) -> Picture:
        # Each thread has its own view, because two threads can't share a netlink socket.
        with view("") as host:
            return picture(sandbox, host)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(of, sandboxes))


def _ask(sandbox: Sandbox, found: Picture, guest_seconds: float | None = None) -> None:
    try:
        said = client.of(sandbox, _LOOK_SECONDS).look(guest_seconds)
    except TapwrightError as error:
        found.guest_failure = found.qemu_failure = str(error)
        return
    found.guest, found.guest_failure = said["guest"], said["guest_failure"]
    if not _is_bounded(found.guest):
        found.guest = {}
        found.guest_failure = "the agent's answer is invalid: a number is too large"
    found.qemu, found.qemu_failure = said["qemu"], said["qemu_failure"]


def _is_bounded(said: dict[str, Any]) -> bool:
    """Whether the guest's numbers fit into the kernel's types; the code that calculates with them
    needs that."""
    numbers = [one["mtu"] for one in said.get("interfaces", [])]
    numbers += [n for one in said.get("interfaces", []) for n in one["counters"].values()]
    numbers += [one[key] for one in said.get("routes", []) for key in ("metric", "table")]
    return all(0 <= number < 2**64 for number in numbers)


class _Collecting:
    """The way of one NIC."""

    def __init__(
        self,
        picture: Picture,
        record: Record,
        inside: View | None,
        host: View,
        attachments: list[Made],
        nic: Nic,
    ) -> None:
        self._picture = picture
        self._inside = inside
        self._host = host
        self._nic = nic
        self._made = next((one for one in attachments if one.ifname == nic.device), None)
        self._join = joins.of_nic(record, nic) or Join("", "", 0)
        self._way = Way(nic.name, nic.mac, nic.network, joined_by=self._join.kind)

    def way(self) -> Way:
        found, nic = self._way, self._nic
        if self._made:
            found.network = found.network or self._made.network
            found.plugins = self._made.plugins
            found.promised = {
                name: seen.link.kind
                for name in self._made.interfaces
                if (seen := self._host.named(name))
            } | {name: "" for name in self._made.interfaces if not self._host.named(name)}
        found.wanted = list(nic.addresses)
        self._guest()
        self._qemu()
        if nic.vhost_user_socket:
            self._socket()
        elif self._inside is not None:
            place = self._inside if self._is_inside else self._host
            self._joined(place)
        return found

    @property
    def _is_inside(self) -> bool:
        """Whether the NIC is joined in the sandbox's namespace, as most NICs are."""
        return self._join.netns in ("", self._picture.netns)

    def _guest(self) -> None:
        listed = self._picture.guest.get("interfaces", [])
        nics = [one for one in listed if one["mac"] == self._nic.mac and not one["loopback"]]
        # Two may have one MAC address.
        said = next((one for one in nics if one["name"] == self._nic.name), None)
        said = said or next(iter(nics), None)
        if said is None:
            state = way.MISSING if self._picture.guest else way.UNKNOWN
            self._way.points.append(
                Point(way.GUEST_NIC, self._nic.name, way.IN_GUEST, state, self._nic.mac)
            )
            self._counted = None
            return
        self._counted = Counters(**{key: said["counters"][key] for key in Counters._fields})
        state = way.DOWN if not said["up"] else way.UP if said["carrier"] else way.NO_CARRIER
        # A remedy may contain the name, and a person runs the remedy as root.
        name = said["name"] if _PLAIN_NAME.fullmatch(said["name"]) else self._nic.name
        point = Point(
            *(way.GUEST_NIC, name, way.IN_GUEST, state, said["mac"], said["mtu"]),
            addresses=said["addresses"],
            driver="virtio_net",
        )
        routes = [
            Route(one["destination"], one["gateway"], one["metric"], one["table"])
            for one in self._picture.guest["routes"]
            if one["device"] == said["name"]
        ]
        self._way.routes = routes
        for one in self._picture.guest["neighbours"]:
            if one["device"] == said["name"] and one["address"] in self._gateways():
                point.facts.append(
                    f"neighbour {one['address']} {one['mac'] or 'unknown'} ({one['state']})"
                )
        self._way.points.append(point)

    def _gateways(self) -> list[str]:
        """Return the gateways of the guest's default routes on this NIC, or of the namespace's if
        the guest did not answer."""
        routes = self._way.routes
        if routes is None:
            routes = self._way.wanted_routes or []
        found = [one.gateway for one in routes if one.destination in _DEFAULT and one.gateway]
        return list(dict.fromkeys(found))

    def _qemu(self) -> None:
        nics, name = self._picture.qemu.get("nics", {}), f"nic{self._nic.slot}"
        point = Point(way.QEMU_NIC, name, way.IN_QEMU, driver="virtio-net-pci")
        if self._picture.qemu:
            status = self._picture.qemu["status"]
            point.mac = nics.get(name, "")
            point.state = way.UP if name in nics else way.MISSING
            if status != "running":
                point.state = way.DOWN
                point.facts.append(f"QEMU is {status}")
        point.made_by = "tapwright"
        both: tuple[Count | None, Count | None] = (None, None)
        if self._counted:
            both = count(self._counted, sent=True), count(self._counted, sent=False)
        self._add(point, Edge("virtio queues", *both))

    def _add(self, point: Point, edge: Edge) -> None:
        self._way.points.append(point)
        self._way.edges.append(edge)

    def _socket(self) -> None:
        path = self._nic.vhost_user_socket
        self._add(Point(way.SOCKET, path, way.ON_HOST), Edge("vhost-user"))

    def _joined(self, place: View) -> None:
        """Add the TAP, and the points beyond it."""
        device = place.interfaces.get(self._join.index)
        if device is None:
            device = place.named(self._nic.device)
        kind = self._way.joined_by
        label = way.ON_HOST if place is self._host else self._picture.netns
        if device and self._nic.index:
            self._wants(device, place)
        if kind in ("tap", "existing_macvtap"):
            if device is None:
                self._missing(way.TAP, self._nic.device, label)
                return
            self._tap(device, place, label, "")
            self._outward(place).follow(device, place)
            return
        name = companion.name_of(self._join.index)
        tap = place.named(name)
        if tap is None:
            self._missing(way.TAP, name, label)
        else:
            self._tap(tap, place, label, "tapwright")
        if device is None:
            self._missing(way.INTERFACE, self._nic.device, label)
            return
        if kind == "tcfilter":
            self._filters(tap, device, place, label)
        elif kind == "macvtap":
            self._interface(device, place, label, Edge("macvtap on"))
        elif tap and tap.link.is_port:
            self._outward(place).follow(tap, place)
            return
        else:
            self._interface(device, place, label, Edge("left to the user"))
        self._outward(place).follow(device, place)

    def _missing(self, kind: str, name: str, label: str) -> None:
        self._add(Point(kind, name, label, way.MISSING), Edge(""))

    def _tap(self, tap: Seen, place: View, label: str, made_by: str) -> None:
        point = point_of(way.TAP, tap, place, label, made_by)
        edge = Edge("TAP queue", count(tap.counters, sent=False), count(tap.counters, sent=True))
        self._add(point, edge)

    def _filters(self, tap: Seen | None, device: Seen, place: View, label: str) -> None:
        """Add the tc filters that redirect packets between TAP and interface, each way."""
        found = [
            Filter(
                one.what,
                source.link.name,
                place.name_of(one.target),
                Count(one.bytes, one.packets, 0, one.dropped),
            )
            for source in (tap, device)
            if source
            for one in place.filters(source.link.index)
            if one.what
        ]
        made_by = "tapwright" if found else ""
        tap_name = tap.link.name if tap else ""
        outward = _through(found, tap_name, device.link.name)
        inward = _through(found, device.link.name, tap_name)
        state = way.UP if outward and inward else way.MISSING
        self._add(
            Point(way.FILTERS, "tc filters", label, state, made_by=made_by, filters=found),
            Edge("what the TAP receives", outward),
        )
        self._interface(device, place, label, Edge("what the interface receives", None, inward))

    def _interface(self, device: Seen, place: View, label: str, edge: Edge) -> None:
        made_by = self._made.maker if self._made else ""
        self._add(point_of(way.INTERFACE, device, place, label, made_by), edge)

    def _wants(self, device: Seen, place: View) -> None:
        """Note the routes that the guest should have from the interface that it follows."""
        self._way.wanted_routes = [
            Route(route.destination, route.gateway or "", route.metric, route.table)
            for route in place.routes
            if route.device == device.link.index and route.table == TABLE_MAIN
        ]

    def _outward(self, place: View) -> Outward:
        inside = self._inside or place
        return Outward(self._way, inside, self._host, self._made, self._gateways())


def _through(filters: list[Filter], source: str, target: str) -> Count | None:
    """Count what filters redirect from one device to the other; None if no filter does."""
    found = [
        one.count
        for one in filters
        if (one.source, one.target) == (source, target) and one.what == "redirect"
    ]
    if not found:
        return None
    return Count(
        sum(one.bytes for one in found),
        sum(one.packets for one in found),
        dropped=sum(one.dropped for one in found),
    )

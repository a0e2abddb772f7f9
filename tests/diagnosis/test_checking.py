"""What is complained of, and what is not."""

import copy
import dataclasses
import json
from collections.abc import Callable

import pytest

from tapwright.diagnosis import checking, way
from tapwright.diagnosis.way import ERROR, WARNING, Count, Picture, Point, Route
from tests.diagnosis import pictures

pytestmark = pytest.mark.unit


def point(picture: Picture, kind: str) -> Point:
    found = picture.ways[0].point(kind)
    assert found
    return found


def complaints(change: Callable[[Picture], object]) -> list[tuple[str, str, str]]:
    """(severity, kind of the point, what) of a picture that was good but for one change."""
    picture = pictures.picture()
    change(picture)
    checking.check(picture)
    return [
        (one.severity, picture.ways[0].points[one.at].kind if one.at >= 0 else "", one.what)
        for one in picture.complaints
    ]


def test_a_good_one_has_none() -> None:
    assert complaints(lambda picture: None) == []


def test_it_is_json() -> None:
    picture = pictures.picture()
    assert (
        json.loads(json.dumps(dataclasses.asdict(picture)))["ways"][0]["points"][0]["mtu"] == 1500
    )


@pytest.mark.parametrize("kind", [way.GUEST_NIC, way.TAP, way.INTERFACE, way.PEER, way.BRIDGE])
def test_a_point_that_is_down_is_reported_once(kind: str) -> None:
    def change(picture: Picture) -> None:
        seen = False
        for one in picture.ways[0].points:
            if one.kind == kind:
                one.state, seen = way.DOWN, True
            elif seen and one.kind in (way.PEER, way.BRIDGE):
                one.state = way.NO_CARRIER
                one.facts.append("port is disabled")

    ((severity, at, what),) = complaints(change)
    assert (severity, at) == (ERROR, kind)
    assert what.endswith("is down")


def test_no_carrier() -> None:
    found = complaints(lambda p: setattr(point(p, way.PEER), "state", way.NO_CARRIER))
    assert found == [(ERROR, way.PEER, "its peer veth2 has no carrier")]


@pytest.mark.parametrize(
    ("kind", "mtu", "at", "remedy"),
    [
        (way.GUEST_NIC, 1400, way.TAP, "in the guest: ip link set eth0 mtu 1500"),
        (way.PEER, 1400, way.PEER, "ip link set veth2 mtu 1500"),
        (way.INTERFACE, 9000, way.INTERFACE, f"nsenter --net={pictures.NETNS} ip link set eth0"),
        (way.BRIDGE, 1300, way.BRIDGE, "ip link set br-dual mtu 1500"),
    ],
)
def test_mtu(kind: str, mtu: int, at: str, remedy: str) -> None:
    picture = pictures.picture()
    point(picture, kind).mtu = mtu
    first, *_ = checking.check(picture).complaints
    assert picture.ways[0].points[first.at].kind == at
    assert f"larger frames than {min(mtu, 1500)} are lost" in first.what
    assert first.remedy.startswith(remedy)


def test_a_bridge_may_have_ports_with_less() -> None:
    assert complaints(lambda p: setattr(point(p, way.BRIDGE), "mtu", 9000)) == []


@pytest.mark.parametrize("kind", [way.GUEST_NIC, way.QEMU_NIC, way.INTERFACE])
def test_mac(kind: str) -> None:
    ((severity, at, what),) = complaints(
        lambda p: setattr(point(p, kind), "mac", "02:00:00:00:00:99")
    )
    assert (severity, at) == (ERROR, kind)
    assert "02:00:00:00:00:99" in what


def test_addresses() -> None:
    def forget(picture: Picture) -> None:
        point(picture, way.GUEST_NIC).addresses.remove("10.91.0.3/24")

    def add(picture: Picture) -> None:
        point(picture, way.GUEST_NIC).addresses.append("10.91.0.9/24")

    ((severity, at, what),) = complaints(forget)
    assert (severity, at) == (ERROR, way.GUEST_NIC)
    assert "lacks the address 10.91.0.3/24" in what
    ((severity, at, what),) = complaints(add)
    assert (severity, at) == (WARNING, way.GUEST_NIC)
    assert "nobody gave it out" in what


def test_nonsense_of_a_guest_is_no_failure() -> None:
    found = complaints(lambda p: point(p, way.GUEST_NIC).addresses.append("\x1b[2Jno/address"))
    assert [severity for severity, _, _ in found] == [WARNING]


def test_routes() -> None:
    def forget(picture: Picture) -> None:
        picture.ways[0].routes = [Route("10.91.0.0/24")]

    ((severity, at, what),) = complaints(forget)
    assert (severity, at) == (ERROR, way.GUEST_NIC)
    assert "lacks the route to 0.0.0.0/0 via 10.91.0.1" in what


def test_filters() -> None:
    ((severity, at, what),) = complaints(lambda p: point(p, way.FILTERS).filters.pop())
    assert (severity, at) == (ERROR, way.FILTERS)
    assert "sends what eth0 receives to tap2_kata" in what


def test_a_port_that_left_its_bridge() -> None:
    def leave(picture: Picture) -> None:
        del picture.ways[0].points[6:]
        del picture.ways[0].edges[5:]

    ((severity, at, what),) = complaints(leave)
    assert (severity, at) == (ERROR, way.PEER)
    assert "no port of the bridge br-dual any more" in what


def test_drops_matter_when_they_are_many() -> None:
    def drop(number: int) -> Callable[[Picture], None]:
        def change(picture: Picture) -> None:
            picture.ways[0].edges[4].inward = Count(10_000, 1000, dropped=number)

        return change

    assert complaints(drop(9)) == []
    ((severity, at, what),) = complaints(drop(90))
    assert (severity, at) == (WARNING, way.PEER)
    assert "dropped 90 packets to the guest" in what


def test_a_gateway_that_does_not_answer() -> None:
    found = complaints(
        lambda p: point(p, way.GUEST_NIC).facts.append("neighbour 10.91.0.1 unknown (failed)")
    )
    assert [(severity, at) for severity, at, _ in found] == [(WARNING, way.GUEST_NIC)]


def test_who_does_not_answer() -> None:
    ((severity, _, what),) = complaints(lambda p: setattr(p, "guest_failure", "no answer"))
    assert (severity, what) == (WARNING, "the guest does not say how its network is: no answer")
    ((severity, _, what),) = complaints(lambda p: setattr(p, "status", "dead"))
    assert (severity, what) == (ERROR, "the sandbox is dead")


def test_a_supervisor_that_can_not_be_asked() -> None:
    def change(picture: Picture) -> None:
        picture.guest_failure = picture.qemu_failure = "unknown request 'look'"

    ((severity, _, what),) = complaints(change)
    assert (severity, what) == (
        *(WARNING, "guest and QEMU can't be asked: unknown request 'look'"),
    )


def test_two_sandboxes_with_one_address() -> None:
    one, other = pictures.picture(), pictures.picture()
    other.id, other.ways[0].mac = "other", "02:00:00:00:00:1a"
    checking.check_all([one, other])
    for each, another in ((one, "other"), (other, "box")):
        told = [complaint.what for complaint in each.complaints]
        assert told == [
            f"{address} is also that of {another}, in the same bridge br-dual"
            for address in ("10.91.0.3", "fd91::3")
        ]
    apart = copy.deepcopy(one)
    apart.complaints, apart.id = [], "apart"
    point(apart, way.BRIDGE).name = "br-other"
    checking.check_all([one, apart])
    assert apart.complaints == []

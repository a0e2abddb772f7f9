"""Pictures as they come of real sandboxes, for what is pure."""

from tapwright.diagnosis import way
from tapwright.diagnosis.way import Count, Edge, Filter, Picture, Point, Route, Way

NETNS = "/run/netns/tapwright-box"
MAC = "02:00:00:00:00:0a"
ADDRESSES = ["10.91.0.3/24", "fd91::3/64"]
LOCAL = "fe80::ff:fe00:a/64"


def nic(name: str = "eth0", mac: str = MAC, mtu: int = 1500, index: int = 2) -> Way:
    """A NIC on a network of the bridge plugin, which is as it should be."""
    tap = f"tap{index}_kata"
    routes = [Route("0.0.0.0/0", "10.91.0.1"), Route("10.91.0.0/24"), Route("fe80::/64")]
    filters = [
        Filter("redirect", tap, name, Count(616, 8)),
        Filter("mirror", name, tap, Count(100, 2)),
        Filter("redirect", name, tap, Count(516, 6)),
    ]
    addresses = [*ADDRESSES, LOCAL]
    return Way(
        name,
        mac,
        "dual",
        ["bridge", "portmap"],
        "tcfilter",
        points=[
            Point(way.GUEST_NIC, name, way.IN_GUEST, way.UP, mac, mtu, list(addresses)),
            Point(way.QEMU_NIC, "nic0", way.IN_QEMU, way.UP, mac, made_by="tapwright"),
            Point(
                *(way.TAP, tap, NETNS, way.UP, "02:00:00:00:00:0b", mtu),
                made_by="tapwright",
                driver="tun",
            ),
            Point(
                *(way.FILTERS, "tc filters", NETNS, way.UP), made_by="tapwright", filters=filters
            ),
            Point(
                *(way.INTERFACE, name, NETNS, way.UP, mac, mtu, list(addresses), "bridge", "veth"),
                index=index,
            ),
            Point(
                *(way.PEER, f"veth{index}", way.ON_HOST, way.UP, "02:00:00:00:00:0c", mtu),
                made_by="bridge",
                driver="veth",
                facts=["hairpin"],
            ),
            Point(
                *(way.BRIDGE, "br-dual", way.ON_HOST, way.UP, "02:00:00:00:00:0d", mtu),
                addresses=["10.91.0.1/24"],
                made_by="bridge",
                driver="bridge",
            ),
            Point(
                *(way.GATEWAY, "10.91.0.1", way.ON_HOST, way.UP),
                made_by="host-local",
                facts=["10.91.0.1 is an address of br-dual"],
            ),
            Point(
                *(way.HOST_NIC, "enp1s0", way.ON_HOST, way.UP, "02:00:00:00:00:0e", 1500),
                addresses=["192.0.2.7/24"],
                facts=["default via 192.0.2.1"],
            ),
        ],
        edges=[
            Edge("virtio queues", Count(728, 8), Count(128, 2)),
            Edge("TAP queue", Count(728, 8), Count(728, 8)),
            Edge("what the TAP receives", Count(616, 8)),
            Edge("what the interface receives", None, Count(516, 6)),
            Edge("veth", Count(1500, 17), Count(2600, 25)),
            Edge("port of", Count(1500, 17), Count(2600, 25)),
            Edge("the host's own end", Count(1600, 20), Count(1100, 9, dropped=4)),
            Edge("the host routes", Count(1_234_567, 1204), Count(98_765_432, 70_321)),
        ],
        wanted=list(ADDRESSES),
        wanted_routes=list(routes),
        routes=list(routes),
        promised={"br-dual": "bridge", f"veth{index}": "veth"},
    )


def picture(*ways: Way) -> Picture:
    return Picture(
        "box",
        "running",
        1_700_000_000.0,
        NETNS,
        accelerator="kvm",
        networks=["dual"],
        ways=list(ways or (nic(),)),
        guest={"interfaces": []},
        qemu={"status": "running"},
    )

"""The requests to the agent, each made by a function of its name, and nowhere else.

`guest.requests` has the types that the agent looks for, `guest.network` and others what becomes of
each request. What is None in a request is left out, and stays in the guest as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Request = dict[str, Any]
Record = dict[str, Any]
"""An address or a route, as `linux.addresses` and `linux.routes` have them."""


def of(op: str, /, **arguments: Any) -> Request:
    """A request by its name, as it comes from elsewhere."""
    return {"op": op, **arguments}


def batch(*requests: Request) -> Request:
    """Several as one: answered by `replies`, a list; the first that fails ends it."""
    return of("batch", requests=list(requests))


# The network.


def set_interface(
    mac: str,
    name: str | None,
    addresses: Sequence[Record] | None,
    *,
    change: bool | None = None,
    looks: Mapping[str, Any] | None = None,
    settings: Sequence[Sequence[str]] = (),
    address: str | None = None,
    index: int | None = None,
    mtu: int | None = None,
    txqlen: int | None = None,
    queues: int | None = None,
    up: bool | None = None,
    running: bool | None = None,
    as_far_as_possible: bool | None = None,
    unwanted: Sequence[Record] | None = None,
    kept: Sequence[Record] | None = None,
) -> Request:
    """Set the NIC that was plugged in with this MAC (or "lo"); as a `change`, leave alone what is
    not given. It gets the MAC `address` instead; `addresses` are all its addresses, or those that
    it shall have while only the `unwanted` ones go, and the `kept` ones stay as they are there.
    `looks` are alias, group, altnames, unwanted_altnames, and the flags that are in a mask;
    `settings` [path below /proc/sys/net, value]. One that is not `running` has no carrier."""
    wanted = {
        "name": name,
        "addresses": None if addresses is None else list(addresses),
        "change": change,
        "index": index,
        "mtu": mtu,
        "txqlen": txqlen,
        "queues": queues,
        "address": address,
        "up": up,
        "running": running,
        "as_far_as_possible": as_far_as_possible,
        "unwanted": unwanted,
        "kept": kept,
        "settings": settings or None,
        **(looks or {}),
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    return of("set_interface", mac=mac, **given)


def change_routes(*, remove: Sequence[Record] = (), add: Sequence[Record] = ()) -> Request:
    return of("change_routes", remove=list(remove), add=list(add))


def replay(messages: str) -> Request:
    """Messages of rtnetlink for the guest's kernel, in base64: answered by what it `refused`."""
    return of("replay", messages=messages)


def set_rulesets(**parts: Any) -> Request:
    """Packet rules, sets of addresses and services, as `nics.carried_rules` has them."""
    return of("set_rulesets", **parts)


def change_settings(settings: Sequence[Sequence[str]]) -> Request:
    """Settings of the guest's network, [path below /proc/sys/net, value] each."""
    return of("change_settings", settings=settings)


def change_kernel_settings(settings: Sequence[Sequence[str]]) -> Request:
    """Settings of the guest's kernel, [path below /proc/sys, value] each."""
    return of("change_kernel_settings", settings=settings)


def set_dns(dns: Mapping[str, Any]) -> Request:
    """nameservers, domain, search and options, as in a CNI result."""
    return of("set_dns", **dns)


def list_network() -> Request:
    return of("list_network")


def look() -> Request:
    """What the guest's network is at this moment, in short."""
    return of("look")


def totals() -> Request:
    """What the guest as a whole has used."""
    return of("totals")


def probe() -> Request:
    """Send packets and report where they go, on a stream: by stdin and stdout, as `guest.probing`
    says."""
    return of("probe")


def resolve(address: str, ports: Sequence[int]) -> Request:
    """Listen at an address as a name server, on a stream."""
    return of("resolve", address=address, ports=list(ports))


def follow_listeners() -> Request:
    """Tell of the ports on which the guest listens, on a stream."""
    return of("follow_listeners")


def forward(family: int, port: int) -> Request:
    """Connect to a port of the guest's loopback, on a stream; `family` is 4 or 6."""
    return of("forward", family=family, port=port)


# Sockets of the host.


def listen_socket(number: int, kind: str, mode: int, uid: int, gid: int) -> Request:
    """Make the counterpart of a socket of the host, of a `kind` of `protocol`, at
    `protocol.SOCKETS`/NUMBER, unless it is there."""
    return of("listen_socket", number=number, kind=kind, mode=mode, uid=uid, gid=gid)


def accept_socket(number: int) -> Request:
    """Wait for the next connection to it, or take its datagrams, on a stream."""
    return of("accept_socket", number=number)


def close_socket(number: int) -> Request:
    """Close it: who connects is refused. Its connections go on."""
    return of("close_socket", number=number)


def cover_sockets(shown: Mapping[str, int], hidden: Sequence[str] = ()) -> Request:
    """Show counterparts, by their numbers, in place of the files at these paths below the share, to
    all containers, also later ones; and at the paths `hidden` none."""
    return of("cover_sockets", shown=dict(shown), hidden=list(hidden))


# The system.


def set_hostname(hostname: str) -> Request:
    return of("set_hostname", hostname=hostname)


def set_machine_id(machine_id: str) -> Request:
    return of("set_machine_id", machine_id=machine_id)


def set_clock(seconds: float) -> Request:
    """Seconds since the epoch."""
    return of("set_clock", seconds=seconds)


def tell_time() -> Request:
    """Answered by `seconds` since the epoch."""
    return of("tell_time")


def expect_memory(for_kernel: bool) -> Request:
    """Memory is about to come: answered by how many bytes of `memory` are in use before."""
    return of("expect_memory", for_kernel=for_kernel)


def take_room(memory: int, cpus: int) -> Request:
    """Use so many CPUs, and wait until there are so many bytes of memory."""
    return of("take_room", memory=memory, cpus=cpus)


# Files of the host.


def mount_share() -> Request:
    return of("mount_share")


def mirror_files(place: str) -> Request:
    """Keep a copy of the directory at this place below the share."""
    return of("mirror_files", place=place)


def forget_files(places: Sequence[str]) -> Request:
    """Keep these copies no longer."""
    return of("forget_files", places=list(places))


def change_files(paths: Sequence[str]) -> Request:
    """The host has changed these paths below the share."""
    return of("change_files", paths=list(paths))


def forget_unused_files() -> Request:
    return of("forget_unused_files")


# Commands and containers.


def execute(argv: Sequence[str]) -> Request:
    """Run a command, on a stream."""
    return of("exec", argv=list(argv))


def create_container(container: str, config: Mapping[str, Any]) -> Request:
    """Make a container without a terminal of an OCI configuration, on a stream."""
    return of("create_container", id=container, config=config, terminal=False)


def exec_container(container: str, process: Mapping[str, Any]) -> Request:
    """Run an OCI process object in a container, without a terminal, on a stream."""
    return of("exec_container", id=container, process=process, terminal=False)


def start_container(container: str) -> Request:
    return of("start_container", id=container)


def delete_container(container: str) -> Request:
    return of("delete_container", id=container)

"""The guest's network: the agent's changes of interfaces and resolv.conf. `routing` has the rest.

Each request states the wanted result, so doing it twice is doing it once. A request for a NIC that
the kernel has not found yet raises NotThereYetError.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tapwright.agent.guest import renumbering, sysctls
from tapwright.agent.guest.files import write
from tapwright.agent.guest.refusal import NotThereYetError, RefusedError
from tapwright.linux import addresses, ethtool, links, neighbours, routes, settings
from tapwright.linux.addresses import Address
from tapwright.linux.announcement import announce
from tapwright.linux.netlink import Netlink, NetlinkError, pack_address, record

RESOLV_CONF = "/etc/resolv.conf"
LOOPBACK = 1
_INTERFACES = "/sys/class/net"
_RUNNING_LOOKS, _RUNNING_PAUSE = 110, 0.01


def prepare(nl: Netlink) -> None:
    """Prepare the network once, at start: set loopback up; set the defaults of settings that the
    host counts on; switch the wait for duplicate address detection off, because the host's plugins
    gave the guest's addresses out and checked them; and make the namespace through which NICs pass
    to get another index."""
    sysctls.try_all(settings.changed_defaults())
    with contextlib.suppress(FileNotFoundError):  # the kernel may run without IPv6 (ipv6.disable=1)
        for scope in ("all", "default"):
            write(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad", "0")
    links.set_up(nl, LOOPBACK)
    renumbering.prepare()


def set_interface(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Set the NIC that was plugged in with `mac` (`lo`: loopback): name, MTU, txqlen, queues,
    addresses (IPv4 in their order), and up, unless `up` is false; with a carrier, unless `running`
    is false. While the NIC has that MAC
    address, it gets `address` instead; a later change belongs to the guest's programs. Its
    `settings`, each [path below /proc/sys/net, value], are set before it comes up. A new NIC gets
    the requested `index` if the index is free. `as_far_as_possible` also sets alias, altnames,
    group and flags (IFF_NOARP, IFF_MULTICAST); a value that the request lacks becomes that of a new
    NIC. IFF_PROMISC and IFF_ALLMULTI are set with `flags`, and cleared if `ended` names them;
    otherwise they belong to the guest's programs.

    Addresses that the request does not name are removed, but for those that the kernel makes; with
    `unwanted` only those go, and what a program of the guest has added stays. With
    `as_far_as_possible`, an address or txqlen that the kernel refuses is left out and reported in
    `refused`; a refused setting always is. A NIC that gets another name, or goes down, loses its
    routes, so the caller adds them again.
    """
    mac = str(request["mac"]).lower()
    wanted = [_from_now(record(Address, item)) for item in request.get("addresses", [])]
    unwanted = (
        [record(Address, item) for item in request["unwanted"]] if "unwanted" in request else None
    )
    link = links.at(nl, LOOPBACK) if mac == "lo" else _find(nl, mac)
    if link is None:
        raise NotThereYetError(f"the NIC {mac}")
    refused: list[str] = []
    link = _with_address(nl, link, mac, str(request.get("address") or mac).lower())
    if not link.is_loopback and request.get("index"):
        link = renumbering.renumber(nl, link, int(request["index"]), refused)
    name, up = request.get("name") or link.name, bool(request.get("up", True))
    was_up = link.is_up
    if name != link.name:
        _make_way(nl, name)
    if was_up and (name != link.name or not up):
        links.set_down(nl, link.index)
        was_up = False
    if name != link.name:
        _rename(nl, link.index, name)
    link = link._replace(name=name)
    _set_sizes(nl, link, request, refused)
    refused += sysctls.try_all(request.get("settings", []))
    if request.get("as_far_as_possible") and not link.is_loopback:
        refused += _set_looks(nl, link, request)
    if up and not was_up:
        _set_up(nl, link, bool(request.get("running", True)))
    new, failed = _set_addresses(nl, link, list(dict.fromkeys(wanted)), unwanted)
    if failed and not request.get("as_far_as_possible"):
        raise next(iter(failed.values()))
    if up and not link.is_loopback:
        # A NIC that has just come up has announced none of its addresses.
        for address in new if was_up else wanted:
            if address not in failed:
                announce(name, link.mac, address.address)
    refused += [str(error.args[-1]) for error in failed.values()]
    answer: dict[str, Any] = {"name": name, "index": link.index}
    return {**answer, "refused": refused} if refused else answer


def _with_address(nl: Netlink, link: links.Link, permanent: str, address: str) -> links.Link:
    """The NIC, when it has the MAC address that it is to have in place of its permanent one."""
    if link.mac != permanent or address == permanent:
        return link
    links.set_mac(nl, link.index, address)
    return link._replace(mac=address)


def _set_up(nl: Netlink, link: links.Link, running: bool) -> None:
    links.set_up(nl, link.index)
    if not link.is_loopback:
        if running:
            # The kernel does not know yet whether the NIC has a carrier; on the host, the interface
            # is running.
            links.set_running(nl, link.index)
        # Since Linux 6.8, a read of the carrier makes the kernel look at once (carrier_show in
        # net/core/net-sysfs.c). Otherwise the kernel would make the link-local address and its
        # route up to a second later, after the namespace's routes have taken that route away.
        with contextlib.suppress(OSError):  # the NIC has gone
            _read(f"{_INTERFACES}/{link.name}/carrier")


def await_running() -> None:
    """Wait until all interfaces that are up and have a carrier are running, for a second at most.

    The kernel checks for new carriers once a second (net/core/link_watch.c). Until then it reports
    a NIC that was just plugged in as down, and so do programs (Java's `isUp`, psutil). On the host,
    the interface runs before any program starts.
    """
    for _ in range(_RUNNING_LOOKS):
        if not any(map(_will_run, os.listdir(_INTERFACES))):
            return
        time.sleep(_RUNNING_PAUSE)


def _will_run(name: str) -> bool:
    directory = f"{_INTERFACES}/{name}"
    with contextlib.suppress(OSError):  # the NIC has gone; a NIC that is down reports no carrier
        return _read(f"{directory}/operstate") == "down" and _read(f"{directory}/carrier") == "1"
    return False


def set_dns(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Write resolv.conf from nameservers, domain, search and options (as in a CNI result)."""
    lines = [f"nameserver {server}" for server in request.get("nameservers", [])]
    if request.get("domain"):
        lines.append(f"domain {request['domain']}")
    for key in ("search", "options"):
        if request.get(key):
            lines.append(f"{key} {' '.join(request[key])}")
    write(RESOLV_CONF, "".join(line + "\n" for line in lines))
    return {}


def list_network(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Return interfaces with their addresses, routes and static neighbours, with devices by
    name."""
    found = links.listing(nl)
    names = {link.index: link.name for link in found}
    by_index: dict[int, list[dict[str, Any]]] = {}
    for index, address in addresses.listing(nl):
        by_index.setdefault(index, []).append(address._asdict())
    return {
        "interfaces": [
            {
                "name": link.name,
                "mac": link.mac,
                "permanent": link.permanent or link.mac,
                "mtu": link.mtu,
                "up": link.is_up,
                "addresses": by_index.get(link.index, []),
            }
            for link in found
        ],
        "routes": [
            {**route._asdict(), "device": names.get(route.device, "")}
            for route in routes.listing(nl)
        ],
        "neighbours": [
            {**entry._asdict(), "device": names.get(entry.device, "")}
            for entry in neighbours.listing(nl)
        ],
    }


def _set_sizes(nl: Netlink, link: links.Link, request: dict[str, Any], refused: list[str]) -> None:
    mtu = int(request.get("mtu") or link.mtu)
    if mtu != link.mtu:
        links.set_mtu(nl, link.index, mtu)
    txqlen = int(request.get("txqlen") or link.txqlen)
    if txqlen != link.txqlen:
        try:
            links.set_txqlen(nl, link.index, txqlen)
        except NetlinkError as error:
            if not request.get("as_far_as_possible"):
                raise
            refused.append(str(error.args[-1]))
    if queues := int(request.get("queues") or 0):
        ethtool.set_queues(link.name, queues)


def _set_looks(nl: Netlink, link: links.Link, request: dict[str, Any]) -> list[str]:
    """Return what the kernel refused, in words."""
    alias, group = str(request.get("alias", "")), int(request.get("group", 0))
    flags = int(request.get("flags", links.IFF_MULTICAST))
    wanted = list(map(str, request.get("altnames", ())))
    steps: list[Callable[[], None]] = [
        partial(links.set_altname, nl, link.index, name, on=False)
        for name in link.altnames
        if name not in wanted
    ]
    if alias != link.alias:
        steps.append(partial(links.set_alias, nl, link.index, alias))
    if group != link.group:
        steps.append(partial(links.set_group, nl, link.index, group))
    mask = links.FLAGS_OF_USERS & ~links.FLAGS_OF_RECEPTION
    mask |= (flags | int(request.get("ended", 0))) & links.FLAGS_OF_RECEPTION
    if (flags ^ link.flags) & mask:
        steps.append(partial(links.set_flags, nl, link.index, flags, mask))
    steps += [
        partial(links.set_altname, nl, link.index, name, on=True)
        for name in wanted
        if name not in link.altnames
    ]
    refused = []
    for step in steps:
        try:
            step()
        except NetlinkError as error:
            refused.append(str(error.args[-1]))
    return refused


def _set_addresses(
    nl: Netlink, link: links.Link, wanted: list[Address], unwanted: list[Address] | None
) -> tuple[list[Address], dict[Address, NetlinkError]]:
    """Make the wanted addresses the addresses of an interface, or, where it may have others, remove
    the unwanted ones. Return the new ones, and those that the kernel refused.

    An IPv4 address stays only as long as the order before it is right, because a new one is added
    at the end. The kernel lists the newest IPv6 address first, so IPv6 addresses are added from the
    last to the first, and present ones stay in place.
    """
    index = link.index
    present = list(map(_comparable, addresses.of(nl, index)))
    keys = {_comparable(address): address for address in wanted}
    leaving = None if unwanted is None else {_comparable(a).timeless for a in unwanted}
    gone = [
        a
        for a in present
        if a not in keys
        and (leaving is None or a.timeless in leaving or a.is_made_from(link.mac))
        and not _is_kernels(a, link)
    ]
    if gone:
        _remove(nl, link, gone)
        present = list(map(_comparable, addresses.of(nl, index)))
    ours = [a for a in present if a.is_ipv4 and a in keys]
    right = _rightly_placed(ours, [a for a in keys if a.is_ipv4])
    if ours[right:]:
        _remove(nl, link, ours[right:])
    kept = set(present).difference(ours[right:])
    new = [address for key, address in keys.items() if key not in kept]
    # Addresses with a lifetime are set anew, because the lifetime may differ.
    again = [address for key, address in keys.items() if key in kept and key.valid is not None]
    in_order = [a for a in new if a.is_ipv4] + [a for a in reversed(new) if not a.is_ipv4]
    failed = dict(addresses.add_many(nl, index, in_order + again)) if new or again else {}
    return [address for address in new if address not in failed], failed


def _remove(nl: Netlink, link: links.Link, some: list[Address]) -> None:
    """Remove addresses from the last to the first, so that the first address of a subnet, which the
    kernel would replace by another one, goes last. The other addresses of the subnet stay, whatever
    the setting `promote_secondaries` is."""
    with _secondaries_kept(link.name, any(address.is_ipv4 for address in some)):
        for address in reversed(some):
            addresses.remove(nl, link.index, address)


@contextlib.contextmanager
def _secondaries_kept(name: str, matters: bool) -> Iterator[None]:
    path = f"/proc/sys/net/ipv4/conf/{name}/promote_secondaries"
    before = _read(path) if matters else "1"
    if before != "0":
        yield
        return
    write(path, "1")
    try:
        yield
    finally:
        write(path, before)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _is_kernels(address: Address, link: links.Link) -> bool:
    """Whether the kernel made an address, and should keep it. False if the interface's settings say
    that the kernel makes none."""
    if link.is_loopback:
        return address.address in ("127.0.0.1", "::1")
    return address.is_made_from(link.mac) and _makes_link_local(link.name)


def _makes_link_local(name: str) -> bool:
    with contextlib.suppress(OSError):  # the interface has no IPv6
        return _read(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode") == "0"
    return False


def _rightly_placed(ours: list[Address], wanted: list[Address]) -> int:
    """Return how many of the NIC's wanted IPv4 addresses can stay."""
    present = set(ours)
    order = _kernels_order(wanted)
    if _kernels_order(ours + [a for a in wanted if a not in present]) == order:
        return len(ours)
    differing = (n for n, (a, b) in enumerate(zip(ours, order, strict=False)) if a != b)
    return next(differing, len(ours))


def _kernels_order(wanted: list[Address]) -> list[Address]:
    """Return IPv4 addresses in the order in which the kernel lists them if they are added in this
    order: the first address of each subnet comes first, by scope (__inet_insert_ifa in
    net/ipv4/devinet.c)."""
    subnets: set[tuple[int, int]] = set()
    first: list[Address] = []
    further: list[Address] = []
    for address in wanted:
        packed = int.from_bytes(pack_address(address.peer or address.address), "big")
        subnet = address.prefix_length, packed >> max(0, 32 - address.prefix_length)
        (further if subnet in subnets else first).append(address)
        subnets.add(subnet)
    return sorted(first, key=lambda address: -address.scope) + further


def _find(nl: Netlink, mac: str) -> links.Link | None:
    """The NIC that was plugged in with a MAC address, whichever it has by now; of a kernel that
    does not tell that one, the one that has it."""
    found = [link for link in links.listing(nl) if not link.is_loopback]
    by_kernel = (link for link in found if link.permanent == mac)
    return next(by_kernel, None) or next((link for link in found if link.mac == mac), None)


def _make_way(nl: Netlink, name: str) -> None:
    """Free a name that another NIC has by chance: the kernel itself called it eth0."""
    holder = links.find(nl, name)
    if holder is None:
        return
    if holder.is_up:
        raise RefusedError(f"the name {name} is taken by the NIC {holder.mac}")
    links.rename(nl, holder.index, f"tw{holder.index}")


def _rename(nl: Netlink, index: int, name: str) -> None:
    """Rename a NIC. The kernel may give the name to a NIC that it finds meanwhile; that NIC is
    renamed, too."""
    while True:
        try:
            links.rename(nl, index, name)
        except NetlinkError as error:
            if error.errno != errno.EEXIST or links.find(nl, name) is None:
                raise
            _make_way(nl, name)
        else:
            return


def _comparable(address: Address) -> Address:
    """Return an address without the fields that the kernel adds, so that a wanted address and an
    equal present one compare as equal. Of its lifetime, only the fact that it has one is kept."""
    return address._replace(
        scope=address.scope if address.is_ipv4 else 0,
        flags=address.flags & ~(addresses.IFA_F_NODAD if address.is_ipv4 else 0),
        valid=None if address.valid is None else 0,
        preferred=None if address.preferred is None else 0,
    )


def _from_now(address: Address) -> Address:
    """Return an address of a request, which has its times in seconds from now."""
    now = time.monotonic()
    valid, preferred = (
        None if left is None else round(now + left) for left in (address.valid, address.preferred)
    )
    return address._replace(valid=valid, preferred=preferred)

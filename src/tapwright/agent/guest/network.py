"""The guest's network: the agent's changes of interfaces and resolv.conf. `routing` has the rest.

Each request states the wanted result, so doing it twice is doing it once. A request for a NIC that
the kernel has not found yet raises NotThereYetError.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

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
    alias, group, altnames, the `flags` that are in `mask`, addresses (IPv4 in their order), and up,
    unless `up` is false; with a carrier, unless `running` is false. While the NIC has that MAC
    address, it gets `address` instead. Its `settings`, each [path below /proc/sys/net, value], are
    set before it comes up. A new NIC gets the requested `index` if the index is free.

    With `change` an earlier request has set the NIC. What the request lacks is then left alone, as
    it may be a program's of the guest; a NIC that is missing is a refusal, because a program has
    moved it to another namespace. Altnames that are in `unwanted_altnames` go.

    Addresses that the request does not name are removed, but for those that the kernel makes; with
    `unwanted` only those go, and what a program of the guest has added stays. Those that are `kept`
    were set before: if one of them is missing, a program has removed it. With
    `as_far_as_possible`, an address or txqlen that the kernel refuses is left out and reported in
    `refused`; a refused setting always is. The answer has `lost` if the kernel may have dropped
    routes or neighbours, so that the caller adds them again.
    """
    is_change = bool(request.get("change"))
    before = _known(nl, str(request["mac"]).lower(), is_change)
    refused: list[str] = []
    link = _identified(nl, before, request, refused)
    up = bool(request.get("up", link.is_up if is_change else True))
    of_before = addresses.of(nl, link.index) if link.is_up and up else []
    link = _named(nl, link, request.get("name") or link.name)
    if link.is_up and not up:
        links.set_down(nl, link.index)
        link = link._replace(flags=link.flags & ~links.IFF_UP)
    _set_sizes(nl, link, request, refused)
    refused += sysctls.try_all(request.get("settings", []))
    if not link.is_loopback:
        refused += _set_looks(nl, link, request)
    if up and not link.is_up:
        _set_up(nl, link, bool(request.get("running", True)))
        if is_change and of_before:
            # IPv6 addresses have gone, also those that programs have added.
            own = [a for a in of_before if not (a.is_ipv4 or _is_kernels(a, link))]
            _set_addresses(nl, link, own, [])
    change = _Change([], {})
    if not is_change or "addresses" in request:
        change = _change_addresses(nl, link, request, up)
    refused += [str(error.args[-1]) for error in change.failed.values()]
    answer: dict[str, Any] = {"name": link.name, "index": link.index}
    has_changed = change.has_removed or link.mac != before.mac or not link.is_up
    if has_changed and before.is_up:  # one that a program has set down had lost them before
        answer["lost"] = True
    return {**answer, "refused": refused} if refused else answer


def _known(nl: Netlink, mac: str, is_change: bool) -> links.Link:
    link = links.at(nl, LOOPBACK) if mac == "lo" else _find(nl, mac)
    if link:
        return link
    if is_change:
        raise RefusedError(f"the NIC {mac} has left the network namespace of the containers")
    raise NotThereYetError(f"the NIC {mac}")


def _identified(
    nl: Netlink, link: links.Link, request: dict[str, Any], refused: list[str]
) -> links.Link:
    """Give a NIC its MAC address and its index; return its new data."""
    if link.is_loopback:
        return link
    address = str(request.get("address") or link.mac).lower()
    is_permanent = link.mac == str(request["mac"]).lower()
    if address != link.mac and (request.get("change") or is_permanent):
        links.set_mac(nl, link.index, address)
        link = link._replace(mac=address)
    if request.get("index"):
        link = renumbering.renumber(nl, link, int(request["index"]), refused)
    return link


def _change_addresses(
    nl: Netlink, link: links.Link, request: dict[str, Any], up: bool
) -> "_Change":
    """Set the addresses of a NIC that was up before, if `link` says so, and announce them."""
    wanted = list(dict.fromkeys(_addresses_in(request, "addresses")))
    unwanted = _addresses_in(request, "unwanted") if "unwanted" in request else None
    change = _set_addresses(nl, link, wanted, unwanted, _addresses_in(request, "kept"))
    if change.failed and not request.get("as_far_as_possible"):
        raise next(iter(change.failed.values()))
    if up and not link.is_loopback:
        # A NIC that has just come up has announced none of its addresses.
        for address in change.new if link.is_up else wanted:
            if address not in change.failed:
                announce(link.name, link.mac, address.address)
    return change


def _addresses_in(request: dict[str, Any], key: str) -> list[Address]:
    return [_from_now(record(Address, item)) for item in request.get(key, [])]


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
    steps: list[Callable[[], None]] = [
        partial(links.set_altname, nl, link.index, name, on=False)
        for name in request.get("unwanted_altnames", ())
        if name in link.altnames
    ]
    if "alias" in request:
        steps.append(partial(links.set_alias, nl, link.index, str(request["alias"])))
    if "group" in request:
        steps.append(partial(links.set_group, nl, link.index, int(request["group"])))
    if mask := int(request.get("mask", 0)) & links.FLAGS_OF_USERS:
        steps.append(partial(links.set_flags, nl, link.index, int(request["flags"]), mask))
    steps += [
        partial(links.set_altname, nl, link.index, name, on=True)
        for name in request.get("altnames", ())
        if name not in link.altnames
    ]
    refused = []
    for step in steps:
        try:
            step()
        except NetlinkError as error:
            refused.append(str(error.args[-1]))
    return refused


class _Change(NamedTuple):
    """What became of an interface's addresses: the new ones, those that the kernel refused, and
    whether some were removed."""

    new: list[Address]
    failed: dict[Address, NetlinkError]
    has_removed: bool = False


def _set_addresses(
    nl: Netlink,
    link: links.Link,
    wanted: list[Address],
    unwanted: list[Address] | None,
    kept: Sequence[Address] = (),
) -> _Change:
    """Make the wanted addresses the addresses of an interface, or, where it may have others, remove
    the unwanted ones. Those that are `kept` and missing stay so.

    An IPv4 address stays only as long as the order before it is right, because a new one is added
    at the end. The kernel lists the newest IPv6 address first, so IPv6 addresses are added from the
    last to the first, and present ones stay in place. The times of one that stays are set anew.
    """
    index = link.index
    found = addresses.of(nl, index)
    limited = {_comparable(a) for a in found if a.valid is not None}
    present = list(map(_comparable, found))
    same = set(map(_comparable, kept))
    missing = same.difference(present)
    keys = {key: address for address in wanted if (key := _comparable(address)) not in missing}
    leaving = None if unwanted is None else set(map(_comparable, unwanted))
    gone = [
        a
        for a in present
        if a not in keys
        and (leaving is None or a in leaving or a.is_made_from(link.mac))
        and not _is_kernels(a, link)
    ]
    if gone:
        _remove(nl, link, gone)
        present = list(map(_comparable, addresses.of(nl, index)))
    ours = [a for a in present if a.is_ipv4 and a in keys]
    right = _rightly_placed(ours, [a for a in keys if a.is_ipv4])
    if ours[right:]:
        _remove(nl, link, ours[right:])
    stay = set(present).difference(ours[right:])
    new = [address for key, address in keys.items() if key not in stay]
    again = [
        address
        for key, address in keys.items()
        if key in stay and key not in same and (address.valid is not None or key in limited)
    ]
    in_order = [a for a in new if a.is_ipv4] + [a for a in reversed(new) if not a.is_ipv4]
    failed = dict(addresses.add_many(nl, index, in_order + again)) if new or again else {}
    return _Change([a for a in new if a not in failed], failed, bool(gone or ours[right:]))


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


def _named(nl: Netlink, link: links.Link, name: str) -> links.Link:
    """Rename a NIC, and return its new data: kernels before 6.2 need it down. The kernel may give
    the name to a NIC that it finds meanwhile; that NIC is renamed, too."""
    if name == link.name:
        return link
    _make_way(nl, name)
    while True:
        try:
            links.rename(nl, link.index, name)
        except NetlinkError as error:
            if error.errno == errno.EBUSY and link.is_up:
                links.set_down(nl, link.index)
                link = link._replace(flags=link.flags & ~links.IFF_UP)
            elif error.errno == errno.EEXIST and links.find(nl, name):
                _make_way(nl, name)
            else:
                raise
        else:
            return link._replace(name=name)


def _comparable(address: Address) -> Address:
    """Return an address without its times, and the fields that the kernel adds, so that a wanted
    address and an equal present one compare as equal."""
    return address.timeless._replace(
        scope=address.scope if address.is_ipv4 else 0,
        flags=address.flags & ~(addresses.IFA_F_NODAD if address.is_ipv4 else 0),
    )


def _from_now(address: Address) -> Address:
    """Return an address of a request, which has its times in seconds from now."""
    now = time.monotonic()
    valid, preferred = (
        None if left is None else round(now + left) for left in (address.valid, address.preferred)
    )
    return address._replace(valid=valid, preferred=preferred)

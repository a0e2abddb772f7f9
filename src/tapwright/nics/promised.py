"""Interfaces that the results of CNI networks promise, and what of them the guest lacks: for each
that became no NIC, a warning says why."""

import json
import logging
from collections.abc import Mapping, Set
from typing import Any

from tapwright.endpoint import discovery
from tapwright.linux import links, netns
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.state.record import Journal, NetworkRequest, Place, Record

_log = logging.getLogger(__name__)

Result = dict[str, Any]

_NO_RENEWAL = (
    'with internetworking_model = "macvtap" the plugin dhcp does not get a server\'s answer when '
    "it renews a lease; use tcfilter"
)


def interfaces(record: Record, results: list[Result]) -> dict[str, str]:
    """The network of each interface that the results (of version 1.0.0 or above) place in the
    sandbox, or that was asked for, by the interface's name."""
    found: dict[str, str] = {}
    for network, result in zip(record.spec.networks, results, strict=True):
        found |= dict.fromkeys([network.ifname, *_inside(result)], network.name)
    return found


def _inside(result: Result) -> list[str]:
    named = [one for one in result.get("interfaces") or [] if one.get("sandbox")]
    return [str(one["name"]) for one in named if one.get("name")]


def note_missing(journal: Journal, results: list[Result]) -> None:
    """Add warnings to the record, and to the log: for interfaces that became no NIC, and for parts
    of interfaces that the guest can't have. Where a result places no interface in the sandbox, the
    requested name counts. Interfaces that are up and carry no Ethernet get a warning, too."""
    record = journal.record
    if record.place is Place.HOST:
        return
    with netns.entered(record.netns), Netlink() as nl:
        present = {link.name: link for link in links.listing(nl)}
    nics = {nic.name for nic in record.interfaces}
    record.warnings = [
        f"network {request.name!r}: {_NO_RENEWAL}"
        for request in record.spec.networks
        if record.spec.model == "macvtap" and _leases(request)
    ]
    record.warnings += [
        f"network {request.name!r}: {text}"
        for request, result in zip(record.spec.networks, results, strict=True)
        for name in _inside(result) or [request.ifname]
        if (text := _warning(name, present, nics))
    ]
    asked_for = {name for result in results for name in _inside(result)}
    record.warnings += [
        _missing(link)
        for link in present.values()
        if link.is_up and not (link.is_loopback or link.is_ethernet or link.name in asked_for)
    ]
    for text in record.warnings:
        _log.warning("%s", text)


def _leases(request: NetworkRequest) -> bool:
    """Whether a daemon of the reference plugin `dhcp` holds the addresses of a network."""
    plugins = json.loads(request.config).get("plugins") or []
    return any((plugin.get("ipam") or {}).get("type") == "dhcp" for plugin in plugins)


def _warning(name: str, present: Mapping[str, Link], nics: Set[str]) -> str:
    link = present.get(name)
    if name in nics:
        if link and link.master and not link.is_port:
            return (
                f"{name} is in a VRF of the namespace; the guest has its routes in their table, "
                "and no VRF that leads there"
            )
        return ""
    if link and link.is_loopback:
        return ""
    if link is None:
        return f"{name} became no NIC of the guest: the namespace has no interface of that name"
    return _missing(link)


def _missing(link: Link) -> str:
    return f"{link.name} became no NIC of the guest: {_reason(link)}"


def _reason(link: Link) -> str:
    if link.kind == "bridge":
        return "it is a bridge; a NIC in its place would take its ports' frames"
    if not link.is_ethernet:
        return f"a {link.kind or 'device of hardware'} carries no Ethernet frames"
    return discovery.why_not(link) or "its NIC was not plugged in"

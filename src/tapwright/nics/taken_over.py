"""What a NIC takes over from its interface: the agent's request for it, and whether it has it.

A request for a NIC that was set before has only what has changed since in the namespace. What a
program of the guest has set stays until then, as it does in a namespace.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from tapwright.agent import requests
from tapwright.agent.requests import Record, Request
from tapwright.endpoint.discovery import Interface
from tapwright.linux import links
from tapwright.linux.addresses import Address, made_from
from tapwright.nics.guest_settings import Setting

Property = Callable[[Interface], Any]

_name, _mac = attrgetter("link.name"), attrgetter("link.mac")
_mtu, _txqlen = attrgetter("link.mtu"), attrgetter("link.txqlen")
_is_running = attrgetter("is_running")


def first_request(
    identity: str, interface: Interface, address: str | None, settings: Sequence[Setting]
) -> Request:
    """The request for a NIC with the MAC address `identity` that is new; it gets the MAC `address`.
    The guest leaves out what its kernel refuses."""
    link = interface.link
    return requests.set_interface(
        identity,
        link.name,
        [one.relative() for one in interface.addresses],
        address=address,
        looks=_looks(interface, [_new(interface)]),
        settings=settings,
        index=link.index,
        mtu=link.mtu,
        txqlen=link.txqlen,
        up=link.is_up,
        running=interface.is_running,
        as_far_as_possible=True,
    )


def change_request(
    identity: str,
    interface: Interface,
    befores: Sequence[Interface],
    settings: Sequence[Setting],
    has_others_addresses: bool = False,
) -> Request:
    """The request for a NIC, or loopback (`lo`), that the guest has as one of `befores`. With
    `has_others_addresses` a request has replaced its addresses, and all of them go."""
    link = interface.link

    def changed(of: Property) -> Any:
        """The interface's property, None if the guest has it."""
        now = of(interface)
        return now if any(of(before) != now for before in befores) else None

    up = changed(_is_up)
    # A NIC that comes up announces its addresses.
    has_new = (
        any(changed(of) is not None for of in (_is_up, _mac, _link_local))
        or has_others_addresses
        or any(_differ(before, interface) for before in befores)
    )
    addresses = _Addresses(interface, befores)
    of_before = has_new and not has_others_addresses
    return requests.set_interface(
        identity,
        changed(_name),
        _relative(addresses.wanted) if has_new else None,
        unwanted=_relative(addresses.unwanted()) if of_before else None,
        kept=_relative(addresses.kept()) if of_before else None,
        change=True,
        address=None if link.is_loopback else changed(_mac),
        looks=_looks(interface, befores),
        settings=settings,
        mtu=changed(_mtu),
        txqlen=changed(_txqlen),
        up=up,
        running=interface.is_running if up and not link.is_loopback else None,
        as_far_as_possible=True,
    )


def is_taken_over(before: Interface | None, found: Interface) -> bool:
    """Whether a NIC has all that it takes over from its interface, but for settings and entries in
    tables."""
    return (
        before is not None
        and all(of(before) == of(found) for of in _ALL)
        and not _differ(before, found)
    )


def _is_up(interface: Interface) -> bool:
    return interface.link.is_up or interface.link.is_loopback


def _alias(interface: Interface) -> str:
    return "" if interface.link.is_loopback else interface.link.alias


def _group(interface: Interface) -> int:
    return 0 if interface.link.is_loopback else interface.link.group


def _flags(interface: Interface) -> int:
    return 0 if interface.link.is_loopback else interface.link.flags & links.FLAGS_OF_USERS


def _altnames(interface: Interface) -> tuple[str, ...]:
    return () if interface.link.is_loopback else interface.link.altnames


def _link_local(interface: Interface) -> object:
    return interface.own_link_local, interface.settings.makes_link_local


_ALL: tuple[Property, ...] = (
    *(_name, _mac, _mtu, _txqlen, _is_up, _is_running),
    *(_alias, _group, _flags, _altnames, _link_local),
)


def _new(interface: Interface) -> Interface:
    """The interface as a new one would look."""
    link = interface.link._replace(alias="", group=0, altnames=(), flags=links.IFF_MULTICAST)
    return interface._replace(link=link)


def _looks(interface: Interface, befores: Iterable[Interface]) -> dict[str, Any]:
    """The further properties of an interface that differ from those before."""
    looks: dict[str, Any] = {}
    for before in befores:
        if _alias(before) != (alias := _alias(interface)):
            looks["alias"] = alias
        if _group(before) != (group := _group(interface)):
            looks["group"] = group
        if mask := _flags(before) ^ (flags := _flags(interface)):
            looks |= {"flags": flags, "mask": looks.get("mask", 0) | mask}
        own, had = _altnames(interface), _altnames(before)
        for key, names, others in (("altnames", own, had), ("unwanted_altnames", had, own)):
            if names := tuple(name for name in names if name not in others):
                looks[key] = [*dict.fromkeys((*looks.get(key, ()), *names))]
    return looks


def _differ(before: Interface, found: Interface) -> bool:
    """Whether the lasting addresses, or the times at which they end, have changed."""
    one, other = before.lasting, found.lasting
    return [a.timeless for a in one] != [b.timeless for b in other] or not all(
        a.ends_with(b) for a, b in zip(one, other, strict=True)
    )


class _Addresses:
    """The addresses that a NIC shall have, and those that it was given before."""

    def __init__(self, interface: Interface, befores: Sequence[Interface]) -> None:
        self._has_another_mac = any(_mac(before) != _mac(interface) for before in befores)
        self.wanted = self._of(interface)
        self._before = [{one.timeless: one for one in self._of(each)} for each in befores]

    def _of(self, interface: Interface) -> tuple[Address, ...]:
        """With another MAC address, also the link-local one that the kernel has made of it, as the
        guest's does only for a NIC that comes up."""
        has_made = interface.is_running and interface.settings.makes_link_local
        if not self._has_another_mac or not has_made or interface.own_link_local:
            return interface.lasting
        return (*interface.lasting, made_from(interface.link.mac))

    def unwanted(self) -> Iterable[Address]:
        """Those that it may have, and is to lose."""
        wanted = {one.timeless for one in self.wanted}
        return dict.fromkeys(one for had in self._before for one in had if one not in wanted)

    def kept(self) -> list[Address]:
        """Those that it had in any case, with the same times."""
        return [
            one
            for one in self.wanted
            if all(one.timeless in had and one.ends_with(had[one.timeless]) for had in self._before)
        ]


def _relative(some: Iterable[Address]) -> list[Record]:
    return [one.relative() for one in some]

"""Which endpoint an interface becomes, and under which name it is in the journal.

Each endpoint's module is loaded when it is needed: a deletion needs only those of the endpoints in
the journal.
"""

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any, Protocol

from tapwright.errors import NetworkError

if TYPE_CHECKING:
    from tapwright.endpoint.limits import Limits
    from tapwright.hypervisor.backends import Backend
    from tapwright.linux.links import Link

_KINDS = {
    # The internetworking models.
    "tcfilter": ("tapwright.endpoint.tcfilter", "TcFilter"),
    "macvtap": ("tapwright.endpoint.macvtap", "Macvtap"),
    "none": ("tapwright.endpoint.bare_tap", "BareTap"),
    # What can be given to a VM as it is.
    "tap": ("tapwright.endpoint.tap", "ExistingTap"),
    "existing_macvtap": ("tapwright.endpoint.macvtap", "ExistingMacvtap"),
    "vhost_user": ("tapwright.endpoint.vhost_user", "VhostUserSocket"),
}

HOST_DEVICE = "net_device"
"""An interface that was moved from the host's namespace (`host_device`), which is no endpoint."""


class Endpoint(Protocol):
    """A dataclass of what must be known to make the join, and to take it away."""

    @property
    def device(self) -> str: ...

    def check(self) -> None:
        """Check, before the entry in the journal, that `detach` would not take what is not ours.
        Raises NetworkError."""

    def attach(self, queues: int, uid: int) -> "Backend":
        """Make it, with that many queues (0: one), for a QEMU of that user id; return what to give
        to the hypervisor. Raises NetworkError; call `detach` all the same."""

    def is_joined(self, link: "Link", mac: str) -> bool:
        """Whether it is still what `attach` made for a NIC with this MAC, with its interface as it
        is now. Raises OSError."""

    def set_mtu(self, mtu: int) -> None:
        """Follow the interface's MTU. Raises OSError."""

    def detach(self) -> None:
        """Take it away, after the descriptors have been closed; it may have gone by itself.
        Raises OSError."""


def choose(link: "Link", netns_path: str, model: str, limits: "Limits") -> Endpoint:
    """The endpoint of an interface in a namespace. Raises NetworkError where there can be none."""
    from tapwright.endpoint import physical
    from tapwright.endpoint.macvtap import MACVLAN, ExistingMacvtap, Macvtap
    from tapwright.endpoint.tap import ExistingTap
    from tapwright.endpoint.tcfilter import TcFilter
    from tapwright.linux import macvtap, netns, tuntap

    if not link.is_ethernet:
        raise NetworkError(f"device: {link.name} carries no Ethernet frames, as a VM's NIC must")
    place = netns_path, link.name, link.index
    if settings := tuntap.settings(link):
        return ExistingTap(*place, link.is_up, settings, *limits)
    if link.kind == macvtap.KIND:
        return ExistingMacvtap(*place, *limits, link.is_up, link.takes_all_multicast)
    try:
        with netns.entered(netns_path):
            physical.refuse(link)
    except OSError as error:
        raise NetworkError(f"device: {link.name} can't be looked at: {error.strerror}") from None
    if model == "macvtap" and link.kind == MACVLAN:
        return Macvtap(*place, *limits, macvtap.mode_of(link), sibling=True, mac=link.mac)
    if model == "tcfilter":
        return TcFilter(*place, *limits, link.takes_all_multicast)
    chosen: Endpoint = _class(model)(*place, *limits)
    return chosen


def entry_of(endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
    """(kind, fields) for the journal."""
    cls = type(endpoint)
    kind = next(name for name, where in _KINDS.items() if where == (cls.__module__, cls.__name__))
    return kind, dataclasses.asdict(endpoint)  # type: ignore[call-overload]


def is_endpoint(entry: dict[str, Any]) -> bool:
    """Whether an entry of the journal is that of an endpoint."""
    return entry["kind"] in _KINDS


def shape(kind: str) -> dict[str, Any]:
    """What an entry of an endpoint must have, by `shapes.fits`."""
    fields = dataclasses.fields(_class(kind))
    needed = {each.name: each.type for each in fields if each.default is dataclasses.MISSING}
    return {**needed, "place": str}


def of_entry(entry: dict[str, Any]) -> Endpoint:
    """The endpoint of an entry of the journal, which may hold more. Raises KeyError where it holds
    less."""
    cls = _class(entry["kind"])
    names = {field.name for field in dataclasses.fields(cls)}
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in entry:
            raise KeyError(field.name)
    endpoint: Endpoint = cls(**{key: value for key, value in entry.items() if key in names})
    return endpoint


def _class(kind: str) -> Any:
    module, name = _KINDS[kind]
    return getattr(importlib.import_module(module), name)

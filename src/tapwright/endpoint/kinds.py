"""Says which endpoint an interface becomes, and under which name the journal has it.

An endpoint's module is loaded when it is needed, so a deletion loads only those of the endpoints in
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

_WITH_COMPANION = {
    # The internetworking models.
    "tcfilter": ("tapwright.endpoint.tcfilter", "TcFilter"),
    "macvtap": ("tapwright.endpoint.macvtap", "Macvtap"),
    "none": ("tapwright.endpoint.bare_tap", "BareTap"),
}
_KINDS = {
    **_WITH_COMPANION,
    # Devices that a VM can use as they are.
    "tap": ("tapwright.endpoint.tap", "ExistingTap"),
    "existing_macvtap": ("tapwright.endpoint.macvtap", "ExistingMacvtap"),
    "vhost_user": ("tapwright.endpoint.vhost_user", "VhostUserSocket"),
}

HOST_DEVICE = "net_device"
"""An interface that was moved from the host's namespace (`host_device`), which is no endpoint."""


class Endpoint(Protocol):
    """A dataclass of what is needed to make the join, and to undo it."""

    @property
    def device(self) -> str: ...

    def check(self) -> None:
        """Check, before the entry in the journal, that `detach` would remove nothing that Tapwright
        has not made. Raises NetworkError."""

    def attach(self, queues: int, uid: int) -> "Backend":
        """Make the join, with that many queues (0: one), for a QEMU of that user id; return what
        the hypervisor gets. Raises NetworkError; call `detach` all the same."""

    def is_joined(self, link: "Link") -> bool:
        """Whether the join is still what `attach` made, with the interface's present state. Raises
        OSError."""

    def mac_for(self, link: "Link", mac: str) -> str:
        """The MAC address that the NIC shall have, which has `mac`, by the interface's present
        state."""

    def set_mac(self, mac: str) -> None:
        """Follow the interface, whose NIC has another MAC address. Raises OSError."""

    def set_mtu(self, mtu: int) -> None:
        """Follow the interface's MTU. Raises OSError."""

    def detach(self) -> None:
        """Undo the join, after the descriptors have been closed. It may be gone already. Raises
        OSError."""


def choose(
    link: "Link", netns_path: str, model: str, limits: "Limits", whole: bool = True
) -> Endpoint:
    """Return the endpoint of an interface in a namespace. A TAP becomes the NIC itself if `whole`,
    or if no process holds it; otherwise that process stays at its other end, like the peer of a
    veth. Raises NetworkError if the interface can't have an endpoint."""
    from tapwright.endpoint import physical
    from tapwright.endpoint.macvtap import MACVLAN, ExistingMacvtap, Macvtap
    from tapwright.endpoint.tap import ExistingTap
    from tapwright.endpoint.tcfilter import TcFilter
    from tapwright.linux import macvtap, netns, tuntap

    if not link.is_ethernet:
        raise NetworkError(f"device: {link.name} carries no Ethernet frames, as a VM's NIC must")
    place = netns_path, link.name, link.index
    settings = tuntap.settings(link)
    if settings and (whole or not tuntap.is_held(link)):
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
    """Return (kind, fields) for the journal."""
    cls = type(endpoint)
    kind = next(name for name, where in _KINDS.items() if where == (cls.__module__, cls.__name__))
    return kind, dataclasses.asdict(endpoint)  # type: ignore[call-overload]


def is_endpoint(entry: dict[str, Any]) -> bool:
    return entry["kind"] in _KINDS


def has_companion(kind: str) -> bool:
    """Whether an endpoint of this kind has a device beside the interface (`companion`), which the
    frames pass. Otherwise the VM uses the interface itself."""
    return kind in _WITH_COMPANION


def shape(kind: str) -> dict[str, Any]:
    """Return the shape of an endpoint's entry, for `shapes.fits`."""
    fields = dataclasses.fields(_class(kind))
    needed = {each.name: each.type for each in fields if each.default is dataclasses.MISSING}
    return {**needed, "place": str}


def of_entry(entry: dict[str, Any]) -> Endpoint:
    """Return the endpoint of a journal's entry, which may have more fields. Raises KeyError if a
    field is missing."""
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

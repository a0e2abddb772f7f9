"""An interface of the host's own namespace that moves into a sandbox's namespace, and back again
(OCI runtime-spec 1.3, config-linux.md, "Network Devices").

A move takes its addresses and routes, and its place as a port. Inside, it gets back its permanent
addresses of global scope, and is up, as by runc. Back on the host, it gets its name, all permanent
addresses, its place in a bridge, and its state. Routes through it are lost.
"""

import dataclasses
import errno
import logging
import os
from dataclasses import dataclass
from typing import Any

from tapwright.endpoint import physical
from tapwright.endpoint.discovery import OUR_ALIAS
from tapwright.errors import NetworkError
from tapwright.linux import addresses, links, netns, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.files import closing
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink, NetlinkError
from tapwright.linux.routes import SCOPE_UNIVERSE

_FALLBACK = "dev%d"  # as the kernel calls what comes back and finds its names taken

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostDevice:
    """An interface as it was on the host, and its `name` in the namespace at `netns`. The inode
    shows whether the path still leads to the same namespace. In `name`, `%d` stands for any free
    number."""

    device: str
    name: str
    netns: str
    inode: int
    index: int
    driver: str
    mac: str
    was_up: bool
    master: int
    addresses: list[list[Any]]

    def move_in(self) -> int:
        """Move the interface to the namespace; return its index there. Raises NetworkError; then
        call `move_back`."""
        try:
            with Netlink() as nl:
                links.set_down(nl, self.index)
                with closing(os.open(self.netns, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                    links.move(nl, self.index, fd, self.name)
            with netns.entered(self.netns), Netlink() as nl:
                link = self._find(nl, self.name)
                if link is None:
                    raise NetworkError(f"{self.device} has gone on its way to {self.netns}")
                kept = [one for one in self._addresses() if one.scope == SCOPE_UNIVERSE]
                self._set_up(nl, link.index, kept)
                return link.index
        except OSError as error:
            raise NetworkError(
                f"{self.device} can't be moved to {self.netns}: {error.strerror}"
            ) from None

    def move_back(self) -> None:
        """Move the interface back from wherever it is, and restore its state on the host. An
        interface that has gone is no error. Raises OSError."""
        inside = self._is_there()
        if inside:
            own = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
            with closing(own), netns.entered(self.netns), Netlink() as nl:
                if link := self._find(nl, self.name):
                    links.set_down(nl, link.index)
                    _move(nl, link.index, own, self.device)
        with Netlink() as nl:
            link = self._find(nl, self.device)
            if link is None or self._is_as_before(nl, link):
                return
            if link.name != self.device:
                _log.warning("%s is called %s now: its name was taken", self.device, link.name)
            if self.master and links.at(nl, self.master):
                links.set_master(nl, link.index, self.master)
            self._set_up(nl, link.index, self._addresses(), self.was_up)

    def _is_there(self) -> bool:
        """Whether the path still leads to the namespace to which the interface was moved."""
        try:
            return os.stat(self.netns).st_ino == self.inode
        except OSError:
            return False

    def _find(self, nl: Netlink, name: str) -> Link | None:
        """Return the interface in the namespace of a socket, under this name, or one that it got
        there."""
        named = links.find(nl, name) if "%" not in name else None
        if named and self._is_it(named):
            return named
        return next(filter(self._is_it, links.listing(nl)), None)

    def _is_it(self, link: Link) -> bool:
        return (link.mac, link.kind) == (self.mac, self.driver) and link.alias != OUR_ALIAS

    def _is_as_before(self, nl: Netlink, link: Link) -> bool:
        return (link.name, link.is_up, link.master) == (self.device, self.was_up, self.master) and (
            set(self._addresses()) <= set(addresses.of(nl, link.index))
        )

    def _addresses(self) -> list[Address]:
        return [Address(*one) for one in self.addresses]

    def _set_up(self, nl: Netlink, index: int, wanted: list[Address], up: bool = True) -> None:
        # IPv4 keeps its order; of IPv6, the kernel lists the newest first.
        ordered = [one for one in wanted if one.is_ipv4]
        ordered += [one for one in reversed(wanted) if not one.is_ipv4]
        for one in ordered:
            addresses.add(nl, index, one)
        if up:
            links.set_up(nl, index)


def _move(nl: Netlink, index: int, netns_fd: int, name: str) -> None:
    try:
        links.move(nl, index, netns_fd, name)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        # Otherwise it was moved, under the name that it has in the namespace.
        if links.at(nl, index):
            links.move(nl, index, netns_fd, _FALLBACK)


def look(device: str, name: str, path: str) -> HostDevice:
    """Return the host's interface of this name, to become `name` in the namespace at `path`.

    Raises NetworkError if it does not exist, can't be moved there, or can't be a NIC.
    """
    with Netlink() as nl:
        link = links.find(nl, device)
        if link is None:
            raise NetworkError(f"there is no interface {device} on the host; name one, or make it")
        permanent = addresses.permanent(nl, link.index)
    _check(link)
    try:
        with netns.entered(path), Netlink() as nl:
            inode = os.stat(path).st_ino
            taken = "%" not in name and links.find(nl, name)
    except OSError as error:
        raise NetworkError(f"the network namespace {path} is gone: {error.strerror}") from None
    if taken:
        raise NetworkError(
            f"there is an interface {name} in {path} already; give {device} another name there, "
            "such as eth%d for any that is free"
        )
    return HostDevice(
        device=device,
        name=name,
        netns=path,
        inode=inode,
        index=link.index,
        driver=link.kind,
        mac=link.mac,
        was_up=link.is_up,
        master=link.master,
        addresses=[list(one) for one in permanent if not one.is_made_from(link.mac)],
    )


def _check(link: Link) -> None:
    """Raises NetworkError for an interface that could not be a NIC."""
    if not link.is_ethernet or link.kind == "bridge":
        what = link.kind or ("loopback" if link.is_loopback else "device")
        raise NetworkError(f"{link.name} is a {what}, and no NIC of a VM can stand for that")
    tap = tuntap.settings(link)
    if tap and tap.taken:
        raise NetworkError(f"{link.name} is a TAP that another process holds; end that first")
    physical.refuse(link)


def entry_of(device: HostDevice) -> dict[str, Any]:
    """Return the device's fields, for the journal."""
    return dataclasses.asdict(device)


SHAPE = {field.name: field.type for field in dataclasses.fields(HostDevice)}
"""The shape of a journal's entry, for `shapes.fits`."""


def of_entry(entry: dict[str, Any]) -> HostDevice:
    """Return the device of a journal's entry, which may have more fields."""
    names = [field.name for field in dataclasses.fields(HostDevice)]
    return HostDevice(**{name: entry[name] for name in names})

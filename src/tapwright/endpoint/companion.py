"""What the internetworking models share: an interface that stays where it is, and a device beside
it that belongs to the VM.

The device's name has the interface's index, and ends in `_kata`, because monitors that are made for
Kata ignore such devices.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from tapwright.endpoint.discovery import OUR_ALIAS
from tapwright.errors import NetworkError
from tapwright.linux import links, netns, tuntap
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink, NetlinkError


@dataclass(frozen=True)
class Waiting:
    """A TAP that a NIC has already, down and without addresses, in a namespace (a descriptor)."""

    name: str
    netns_fd: int

    @property
    def netns(self) -> str:
        return f"/proc/self/fd/{self.netns_fd}"


@dataclass(frozen=True)
class WithCompanion:
    """An interface in the namespace at `netns`. Limits are in bits a second."""

    netns: str
    device: str
    index: int
    rx_limit: int = 0
    tx_limit: int = 0

    @property
    def name(self) -> str:
        """The name of the device beside the interface."""
        return name_of(self.index)

    def mac_for(self, link: Link, mac: str) -> str:
        return link.mac

    def set_mac(self, mac: str) -> None:
        """Do nothing: frames pass whatever their addresses are."""

    def set_mtu(self, mtu: int) -> None:
        """Give the device the interface's MTU. Raises OSError."""
        with self.inside() as nl:
            if beside := links.find(nl, self.name):
                links.set_mtu(nl, beside.index, mtu)
                links.leave_ipv6_alone(nl, beside.index)

    def check_name(self, nl: Netlink) -> None:
        """Raises NetworkError if another device has the companion's name."""
        if links.find(nl, self.name):
            raise NetworkError(
                f"device: there is a {self.name} already, as the device beside {self.device} would "
                "be called; remove it first"
            )

    @contextlib.contextmanager
    def inside(self) -> Iterator[Netlink]:
        """Enter the namespace. Raises OSError."""
        with netns.entered(self.netns), Netlink() as nl:
            yield nl

    def link(self, nl: Netlink) -> Link:
        """Raises NetworkError."""
        link = links.at(nl, self.index)
        if link is None:
            raise NetworkError(f"device: {self.device} has gone from {self.netns}")
        return link

    def add_tap(self, nl: Netlink, link: Link) -> tuple[int, int]:
        """Make a TAP in the calling thread's namespace, which lives as long as its descriptor is
        open; return descriptor and index. Raises NetworkError, and leaves nothing then.
        """
        try:
            fd = tuntap.create(self.name)
        except OSError as error:
            raise NetworkError(f"no TAP {self.name} for {link.name}: {error.strerror}") from None
        try:
            tap = links.named(nl, self.name)
            set_up(nl, tap.index, link)
        except NetlinkError as error:
            os.close(fd)
            raise NetworkError(f"{link.name} can't be given a TAP: {error}") from None
        return fd, tap.index

    def bring_tap(self, nl: Netlink, link: Link, waiting: Waiting) -> int:
        """Move a waiting TAP into the namespace of the socket `nl`, and set it up as `add_tap`
        does; return its index. Raises NetworkError, OSError."""
        here = os.open(self.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with netns.entered(waiting.netns), Netlink() as theirs:
                tap = links.named(theirs, waiting.name)
                if os.path.sameopenfile(here, waiting.netns_fd):
                    links.rename(theirs, tap.index, self.name)
                else:
                    links.move(theirs, tap.index, here, self.name)
            index = links.named(nl, self.name).index
            set_up(nl, index, link)
        except NetlinkError as error:
            raise NetworkError(f"{link.name} can't be given a TAP: {error}") from None
        finally:
            os.close(here)
        return index


def name_of(index: int) -> str:
    """Return the name of the device beside the interface with that index; at most 15 bytes."""
    return f"tap{index}_kata" if index < 10**7 else f"t{index:x}_kata"


def set_up(nl: Netlink, index: int, link: Link) -> None:
    """Mark the device beside an interface as Tapwright's, and bring it up. Raises NetlinkError."""
    links.set_alias(nl, index, OUR_ALIAS)
    links.set_mtu(nl, index, min(link.mtu, tuntap.LARGEST_MTU))
    if link.txqlen:  # an interface without a queue has no queue length
        links.set_txqlen(nl, index, min(link.txqlen, tuntap.LONGEST_QUEUE))
    links.leave_ipv6_alone(nl, index)
    links.set_up(nl, index)


def refuse_queues(queues: int, device: str) -> None:
    """Raises NetworkError if several queues are wanted of a device that has one."""
    if queues > 1:
        raise NetworkError(f"queues: {queues}: only a TAP can have several, and {device} is none")

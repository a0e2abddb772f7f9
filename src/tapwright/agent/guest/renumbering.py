"""Gives a NIC the index that its interface has in the namespace on the host.

A kernel takes that wish only for a device that comes from another network namespace
(IFLA_NEW_IFINDEX, since Linux 5.13; others pass over it): so it goes through one, which is empty.
"""

import contextlib
import os
from collections.abc import Iterator

from tapwright.linux import libc, links
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink, NetlinkError

_OWN = "/proc/thread-self/ns/net"


class Passage:
    """An empty namespace, as long as the process lives."""

    def __init__(self) -> None:
        with _own() as own:
            libc.unshare(libc.CLONE_NEWNET)
            try:
                self._fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
                self._netlink = Netlink()
            finally:
                libc.setns(own, libc.CLONE_NEWNET)

    def pass_through(self, nl: Netlink, link: Link, index: int) -> None:
        """Move a NIC, which is down, there and back, that it may have `index`. It comes back in any
        case. Raises NetlinkError."""
        links.move(nl, link.index, self._fd, link.name)
        with _own() as own:
            # Beside it may be devices that kernels put into each namespace.
            there = next(o.index for o in links.listing(self._netlink) if o.mac == link.mac)
            try:
                links.move(self._netlink, there, own, link.name, index)
            except NetlinkError:
                links.move(self._netlink, there, own, "eth%d")
                raise


@contextlib.contextmanager
def _own() -> Iterator[int]:
    """The descriptor of the namespace that this thread is in."""
    fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


_passage: Passage | None = None


def prepare() -> None:
    """Make the passage, which takes its time, before it is needed. Raises OSError."""
    global _passage
    _passage = _passage or Passage()


def renumber(nl: Netlink, link: Link, index: int, refused: list[str]) -> Link:
    """Give a NIC that index where it is free; return what the NIC is then. What nobody has
    configured loses nothing by it. It is a wish: what the kernel says to it is added to `refused`.
    Raises NetlinkError when the NIC is lost."""
    if link.is_up or link.index == index or _passage is None or links.at(nl, index):
        return link
    try:
        _passage.pass_through(nl, link, index)
    except NetlinkError as error:
        refused.append(f"{link.name} gets no index {index}: {error}")
    known = [one for one in links.listing(nl) if one.mac == link.mac and not one.is_up]
    # What a container has put on another NIC may have the same address.
    found = next((one for one in known if one.index == index), None)
    return found or links.named(nl, known[0].name if known else link.name)

"""Gives a NIC the index that its interface has in the namespace on the host.

The kernel accepts an index only for a device that comes from another network namespace
(IFLA_NEW_IFINDEX, since Linux 5.13; older kernels ignore it). So the NIC passes through an empty
namespace.
"""

import contextlib
import errno
import os

from tapwright.linux import addresses, libc, links
from tapwright.linux.files import closing
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
        """Move a NIC that is down into the namespace and back, to get `index`. The NIC comes back
        in any case. Raises NetlinkError."""
        links.move(nl, link.index, self._fd, link.name)
        with _own() as own:
            # The namespace may have other devices that the kernel puts into each namespace.
            there = next(o.index for o in links.listing(self._netlink) if _is_same(o, link))
            try:
                self._bring_back(there, own, link.name, index)
            except NetlinkError:
                links.move(self._netlink, there, own, "eth%d")
                raise

    def _bring_back(self, there: int, own: int, name: str, index: int) -> None:
        try:
            links.move(self._netlink, there, own, name, index)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            # The kernel has named a NIC that was plugged in meanwhile. The caller renames this one.
            links.move(self._netlink, there, own, "eth%d", index)


def _own() -> contextlib.AbstractContextManager[int]:
    """The descriptor of this thread's namespace, for a block."""
    return closing(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))


def _is_same(one: Link, link: Link) -> bool:
    """Whether it is the same NIC, as far as its kernel tells: several may have one MAC address."""
    return (one.permanent, one.mac) == (link.permanent, link.mac)


_passage: Passage | None = None


def prepare() -> None:
    """Make the namespace ahead of time, because that takes a while. Raises OSError."""
    global _passage
    _passage = _passage or Passage()


def _is_waiting(nl: Netlink, link: Link) -> bool:
    """Whether it is a NIC that nobody has configured yet. What programs make has a kind."""
    is_made = link.is_loopback or link.kind
    return not (link.is_up or is_made or addresses.of(nl, link.index))


def renumber(nl: Netlink, link: Link, index: int, refused: list[str]) -> Link:
    """Give a NIC that index if the index is free, or a NIC has it that waits for its own. Return
    the NIC with its new data. A NIC without configuration loses nothing on its way. A failure is no
    error: the kernel's reason is added to `refused`. Raises NetlinkError when the NIC is lost."""
    if link.is_up or link.index == index or _passage is None:
        return link
    holder = links.at(nl, index)
    if holder and not _is_waiting(nl, holder):
        return link
    try:
        if holder:
            # NICs that are plugged in together get indexes in any order.
            _passage.pass_through(nl, holder, max(one.index for one in links.listing(nl)) + 1)
        _passage.pass_through(nl, link, index)
    except NetlinkError as error:
        refused.append(f"{link.name} gets no index {index}: {error}")
    known = [one for one in links.listing(nl) if _is_same(one, link) and not one.is_up]
    # A container may have given another NIC the same MAC address.
    found = next((one for one in known if one.index == index), None)
    return found or links.named(nl, known[0].name if known else link.name)

"""Waits for changes of a namespace's interfaces, addresses, routes, rules, next hops, static
neighbours, settings and packet rules, and for the removal of traffic control."""

import contextlib
import errno
import select
import time
from collections.abc import Iterator

from tapwright.linux import addresses, entries, links, neighbours, routes, settings, tc
from tapwright.linux.inotify import Writes
from tapwright.linux.netlink import Message, Netlink

# Multicast groups of include/uapi/linux/rtnetlink.h.
_RTMGRP_LINK, _RTMGRP_NEIGH, _RTMGRP_TC = 0x1, 0x4, 0x8
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_RTMGRP_IPV4_RULE, _RTMGRP_IPV6_RULE, _RTMGRP_NEXTHOP = 1 << 7, 1 << 18, 1 << 31
_RTMGRP_IPV4_NETCONF, _RTMGRP_IPV6_NETCONF = 1 << 23, 1 << 24
_GROUPS = (
    _RTMGRP_IPV4_RULE
    | _RTMGRP_IPV6_RULE
    | _RTMGRP_NEXTHOP
    | _RTMGRP_IPV4_NETCONF
    | _RTMGRP_IPV6_NETCONF
    | _RTMGRP_LINK
    | _RTMGRP_NEIGH
    | _RTMGRP_TC
    | _RTMGRP_IPV4_IFADDR
    | _RTMGRP_IPV4_ROUTE
    | _RTMGRP_IPV6_IFADDR
    | _RTMGRP_IPV6_ROUTE
)
_RTM_NEWNETCONF, _RTM_DELNETCONF = 80, 81
_BUFFER_BYTES = 1 << 20
_MOST_WATCHED = 1000
_QUIET, _AT_MOST = 0.01, 0.1
_OURS = "_kata"

# include/uapi/linux/netfilter/nfnetlink.h, and nf_tables.h: the message that ends each transaction.
# Not from `linux.nftables`, which would take more memory than the whole monitor.
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES, _NFT_NEWGEN = 12, 7, 10 << 8 | 15

_KINDS = {
    *(links.RTM_NEWLINK, links.RTM_DELLINK),
    *(addresses.RTM_NEWADDR, addresses.RTM_DELADDR),
    *(routes.RTM_NEWROUTE, routes.RTM_DELROUTE),
    *(entries.RTM_NEWRULE, entries.RTM_DELRULE),
    *(entries.RTM_NEWNEXTHOP, entries.RTM_DELNEXTHOP),
    *(_RTM_NEWNETCONF, _RTM_DELNETCONF),
    tc.RTM_DELQDISC,  # it may have joined an interface with a NIC
}


class Events:
    """Changes in the namespace of the thread that makes this object. From then on no change is
    missed: if the kernel has to drop reports, that counts as a change."""

    def __init__(self) -> None:
        self._netlink = Netlink(_GROUPS, receive_bytes=_BUFFER_BYTES)
        self._sockets = [self._netlink, *_of_netfilter()]
        self._poll = select.poll()
        for watched in self._sockets:
            self._poll.register(watched.fileno(), select.POLLIN)
        self._writes = Writes()
        self._poll.register(self._writes.fileno(), select.POLLIN)
        self._watch(settings.directories())
        self._noted = 0.0
        self._static = {(e.device, e.address) for e in neighbours.listing(self._netlink)}

    def wait(self, seconds: float | None) -> bool:
        """Wait for a change, at most `seconds`; return whether there was one.

        It returns at once after the first change. In a burst it waits for the end: 10 ms without a
        change, or 0.1 s.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._changed(deadline):
            if deadline is not None and time.monotonic() >= deadline:
                return False
        now = time.monotonic()
        end = max(now, self._noted + _AT_MOST)
        while now < end and self._changed(min(now + _QUIET, end)):
            now = time.monotonic()
        # Before the caller reads the settings. New interfaces are included, and the kernel may have
        # dropped the other watches for want of memory.
        self._watch(settings.directories_of_interfaces())
        self._noted = time.monotonic()
        return True

    def _changed(self, deadline: float | None) -> bool:
        """Wait for messages; return whether one of them reports a change that matters."""
        pause = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
        if not self._poll.poll(pause):
            return False
        was_written = self._writes.drain()
        return sum(map(self._has_news, self._sockets)) > 0 or was_written

    def _has_news(self, watched: Netlink) -> bool:
        try:
            messages = watched.notifications()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return True
        if watched is not self._netlink:
            return any(kind == _NFT_NEWGEN for kind, _ in messages)
        # All messages are read, because each may change the known neighbours.
        return sum(map(self._matters, messages)) > 0

    def _watch(self, directories: list[str]) -> None:
        """Watch settings as files: the kernel reports only few of them by netlink."""
        for directory in directories[:_MOST_WATCHED]:
            with contextlib.suppress(OSError):  # the directory has gone, or there are too many
                self._writes.add(directory)

    def _matters(self, message: Message) -> bool:
        kind, body = message
        if kind in (links.RTM_NEWLINK, links.RTM_DELLINK):
            link = links.decode(body)
            return not (link.is_loopback or link.name.endswith(_OURS))
        if kind in (neighbours.RTM_NEWNEIGH, neighbours.RTM_DELNEIGH):
            return self._neighbour_matters(body)
        return kind in _KINDS

    def _neighbour_matters(self, body: bytes) -> bool:
        """Whether an entry is static, or was: others come and go with the traffic."""
        place = neighbours.place(body)
        if neighbours.decode(body):
            self._static.add(place)
            return True
        was_static = place in self._static
        self._static.discard(place)
        return was_static


def _of_netfilter() -> Iterator[Netlink]:
    """Yield a socket that receives changes of rules, if the kernel has rules."""
    try:
        yield Netlink(1 << (_NFNLGRP_NFTABLES - 1), _BUFFER_BYTES, _NETLINK_NETFILTER)
    except OSError:
        return

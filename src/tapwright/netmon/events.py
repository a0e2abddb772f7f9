"""Waiting for changes of a namespace's interfaces, addresses, routes and static neighbours."""

import errno
import select
import time

from tapwright.linux import addresses, links, neighbours, routes
from tapwright.linux.netlink import Message, Netlink

# Multicast groups of include/uapi/linux/rtnetlink.h.
_RTMGRP_LINK, _RTMGRP_NEIGH = 0x1, 0x4
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_GROUPS = (
    _RTMGRP_LINK
    | _RTMGRP_NEIGH
    | _RTMGRP_IPV4_IFADDR
    | _RTMGRP_IPV4_ROUTE
    | _RTMGRP_IPV6_IFADDR
    | _RTMGRP_IPV6_ROUTE
)
_BUFFER_BYTES = 1 << 20
_QUIET, _AT_MOST = 0.01, 0.1
_OURS = "_kata"

_KINDS = {
    *(links.RTM_NEWLINK, links.RTM_DELLINK),
    *(addresses.RTM_NEWADDR, addresses.RTM_DELADDR),
    *(routes.RTM_NEWROUTE, routes.RTM_DELROUTE),
}


class Events:
    """Changes in the namespace of the thread that makes this. From then on none is missed: when
    the kernel has to drop some, that counts as a change."""

    def __init__(self) -> None:
        self._netlink = Netlink(_GROUPS, receive_bytes=_BUFFER_BYTES)
        self._poll = select.poll()
        self._poll.register(self._netlink.fileno(), select.POLLIN)
        self._told = 0.0
        self._static = {(e.device, e.address) for e in neighbours.listing(self._netlink)}

    def wait(self, seconds: float | None) -> bool:
        """Wait for a change, at most that long; return whether there was one.

        The first one after a time of quiet is told of at once. The end of a burst is waited for:
        10 ms without a change, or 0.1 s.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._changed(deadline):
            if deadline is not None and time.monotonic() >= deadline:
                return False
        now = time.monotonic()
        end = max(now, self._told + _AT_MOST)
        while now < end and self._changed(min(now + _QUIET, end)):
            now = time.monotonic()
        self._told = time.monotonic()
        return True

    def _changed(self, deadline: float | None) -> bool:
        """Wait for messages; return whether one of them tells of a change that matters."""
        pause = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
        if not self._poll.poll(pause):
            return False
        try:
            # All of them, for each may change what is known of neighbours.
            return sum(map(self._matters, self._netlink.notifications())) > 0
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return True

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

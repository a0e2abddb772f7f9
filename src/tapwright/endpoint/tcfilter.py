"""The `tcfilter` internetworking model: a TAP beside the interface, and tc filters that send every
frame across, in both directions.

The interface keeps its addresses, but its frames do not reach this host's stack: the VM has taken
its place. The host's stack gets a copy of a few frames (`heard`). The model works for everything
that carries Ethernet frames: veth, macvlan, bond, the port of a bridge, …
"""

import errno
import logging
import os
from dataclasses import dataclass

from tapwright.endpoint import heard, limits
from tapwright.endpoint.companion import Waiting, WithCompanion, name_of, refuse_queues
from tapwright.endpoint.discovery import OUR_ALIAS
from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import Tap
from tapwright.linux import links, tc
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink, NetlinkError

ON_ANOTHER = ("macvlan", "macvtap")
"""The kinds of interfaces with a parent and their own MAC address."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TcFilter(WithCompanion):
    """In each direction, frames leave a device at which they did not arrive, so each device has one
    of the limits.

    The supervisor does not know which multicast groups the guest joins, so the interface takes all.
    """

    took_all_multicast: bool = False

    def check(self) -> None:
        with self.inside() as nl:
            self.check_name(nl)
            limits.check_ingress(nl, self.index, self.device)

    def attach(self, queues: int, uid: int) -> Tap:
        refuse_queues(queues, self.device)
        with self.inside() as nl:
            link = self.link(nl)
            fd, tap = self.add_tap(nl, link)
            try:
                self._join(nl, link, tap)
            except NetworkError:
                os.close(fd)
                raise
        return Tap([fd])

    def adopt(self, waiting: Waiting) -> None:
        """Attach a TAP that a NIC has already. Raises NetworkError, OSError; call `detach` all the
        same."""
        with self.inside() as nl:
            link = self.link(nl)
            self._join(nl, link, self.bring_tap(nl, link, waiting))

    def _join(self, nl: Netlink, link: Link, tap: int) -> None:
        try:
            tc.add_ingress(nl, tap)
            tc.redirect_ingress(nl, tap, link.index)
            tc.add_ingress(nl, link.index)
            if not link.is_port:  # a port's frames go to the bridge, not to the host's stack
                _share(nl, link, tap)
            tc.redirect_ingress(nl, link.index, tap)
            links.set_all_multicast(nl, link.index, True)
            limits.limit_egress(nl, tap, self.rx_limit)
            limits.limit_egress(nl, link.index, self.tx_limit)
            if not link.txqlen:
                # With its first qdisc the kernel gives it one of 1000 frames (qdisc_create in
                # net/sched/sch_api.c), which would count as a change of the interface.
                links.set_txqlen(nl, link.index, 0)
        except NetlinkError as error:
            raise NetworkError(f"{link.name} can't be joined with a TAP: {error}") from None

    def is_joined(self, link: Link) -> bool:
        """Filters go away when the interface leaves its namespace."""
        with self.inside() as nl:
            return tc.has_ingress(nl, self.index)

    def set_mac(self, mac: str) -> None:
        """A macvlan's frames pass the NIC of its parent, if that has one. Raises OSError."""
        with self.inside() as nl:
            if link := links.at(nl, self.index):
                _share_of_parent(nl, link)

    def detach(self) -> None:
        """Remove the filters from the interface; the TAP goes with its descriptor. Raises
        OSError."""
        with self.inside() as nl:
            if links.at(nl, self.index):
                tc.remove_ingress(nl, self.index)
                links.set_all_multicast(nl, self.index, self.took_all_multicast)
                limits.lift_egress(nl, self.index, self.tx_limit)


def _share(nl: Netlink, link: Link, tap: int) -> None:
    """Mirror to the host the frames that are for the host, and to macvlans on the interface, which
    have their own NICs, theirs. Raises NetlinkError."""
    try:
        tc.share_ingress(nl, link.index, tap, heard.PROGRAM)
        for one in links.listing(nl):
            if one.kind in ON_ANOTHER and one.parent == link.index and one.mac != link.mac:
                tc.share_ingress(nl, link.index, tap, heard.of_one_on_it(one.mac))
        _share_of_parent(nl, link)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        # The redirections, which the model needs, are in place all the same.
        _log.warning(
            "the kernel lacks cls_bpf: programs on the host, such as the plugin dhcp, hear nothing "
            "on %s",
            link.name,
        )


def _share_of_parent(nl: Netlink, link: Link) -> None:
    """Where a macvlan came, or got its MAC address, later than the NIC of its parent, mirror its
    frames to it. Raises NetlinkError."""
    if link.kind in ON_ANOTHER and link.parent:
        below = links.find(nl, name_of(link.parent))
        if below and below.alias == OUR_ALIAS and tc.has_ingress(nl, link.parent):
            tc.share_ingress(nl, link.parent, below.index, heard.of_one_on_it(link.mac))

"""The `tcfilter` internetworking model: a TAP beside the interface, and tc filters that send
every frame across, both ways.

The interface keeps its addresses, but its frames never reach this host's stack: the VM has taken
its place. Works for whatever carries Ethernet frames: veth, macvlan, bond, the port of a bridge, …
"""

import os
from dataclasses import dataclass

from tapwright.endpoint import limits
from tapwright.endpoint.beside import Beside, refuse_queues
from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import Tap
from tapwright.linux import links, tc
from tapwright.linux.links import Link
from tapwright.linux.netlink import NetlinkError


@dataclass(frozen=True)
class TcFilter(Beside):
    """Both ways, frames leave a device that they did not arrive at, so both limits sit there.

    Which multicast groups the guest joins is not known here, so the interface takes all.
    """

    took_all_multicast: bool = False

    def check(self) -> None:
        """Raises NetworkError."""
        with self.inside() as nl:
            self.check_name(nl)
            limits.check_ingress(nl, self.index, self.device)

    def attach(self, queues: int, uid: int) -> Tap:
        """Raises NetworkError; call `detach` all the same."""
        refuse_queues(queues, self.device)
        with self.inside() as nl:
            link = self.link(nl)
            fd, tap = self.add_tap(nl, link)
            try:
                tc.add_ingress(nl, tap)
                tc.redirect_ingress(nl, tap, link.index)
                tc.add_ingress(nl, link.index)
                tc.redirect_ingress(nl, link.index, tap)
                links.set_all_multicast(nl, link.index, True)
                limits.limit_egress(nl, tap, self.rx_limit)
                limits.limit_egress(nl, link.index, self.tx_limit)
            except NetlinkError as error:
                os.close(fd)
                raise NetworkError(f"{link.name} can't be joined with a TAP: {error}") from None
        return Tap([fd])

    def is_joined(self, link: Link, mac: str) -> bool:
        """Filters go when the interface leaves its namespace."""
        with self.inside() as nl:
            return link.mac == mac and tc.has_ingress(nl, self.index)

    def detach(self) -> None:
        """Take the filters off the interface; the TAP goes with its descriptor. Raises OSError."""
        with self.inside() as nl:
            if links.at(nl, self.index):
                tc.remove_ingress(nl, self.index)
                links.set_all_multicast(nl, self.index, self.took_all_multicast)
                limits.lift_egress(nl, self.index, self.tx_limit)

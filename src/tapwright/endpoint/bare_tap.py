"""The internetworking model `none`: a TAP beside the interface, and nothing else.

The user decides where the TAP's frames go: to a bridge, by other filters, to a program.
"""

import os
from dataclasses import dataclass

from tapwright.endpoint import limits
from tapwright.endpoint.companion import WithCompanion, refuse_queues
from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import Tap
from tapwright.linux.links import Link
from tapwright.linux.netlink import NetlinkError


@dataclass(frozen=True)
class BareTap(WithCompanion):
    """Its limits are the TAP's."""

    def check(self) -> None:
        with self.inside() as nl:
            self.check_name(nl)
            limits.check_name(nl, self.index)

    def attach(self, queues: int, uid: int) -> Tap:
        refuse_queues(queues, self.device)
        with self.inside() as nl:
            link = self.link(nl)
            fd, tap = self.add_tap(nl, link)
            try:
                limits.limit_egress(nl, tap, self.rx_limit)
                limits.limit_ingress(nl, tap, self.tx_limit, self.index)
            except NetlinkError as error:
                os.close(fd)
                raise NetworkError(f"{self.name} can't be limited: {error}") from None
        return Tap([fd])

    def is_joined(self, link: Link) -> bool:
        return True

    def mac_for(self, link: Link, mac: str) -> str:
        # The user who connects the TAP may have to change the interface's.
        return mac

    def detach(self) -> None:
        """Remove the ifb of the limit; the TAP goes with its descriptor. Raises OSError."""
        with self.inside() as nl:
            limits.lift_ingress(nl, 0, self.tx_limit, self.index)

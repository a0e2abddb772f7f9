"""The internetworking model `macvtap`: a macvtap on the interface, opened by descriptor; and an
existing macvtap, which is opened as it is.

On most interfaces it is in mode `passthru`: it takes all frames, and the interface's own MAC
address. The kernel puts a macvtap on a macvlan beside it, on the same parent. There the macvtap
takes the macvlan's mode and MAC address, the macvlan gets another MAC address, and what arrives at
the macvlan is dropped, so this host does not answer for the VM.

The supervisor does not know which multicast groups the guest joins, and a macvtap gets only frames
of joined groups; some of them ask for an IPv6 neighbour. So the macvtap takes all groups.
"""

import os
from dataclasses import dataclass

from tapwright.endpoint import companion, limits
from tapwright.endpoint.companion import WithCompanion, refuse_queues
from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import Tap
from tapwright.linux import links, macvtap, neighbours, tc
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink, NetlinkError

MACVLAN = "macvlan"


@dataclass(frozen=True)
class Macvtap(WithCompanion):
    """`sibling` and `mac` are set if the interface is itself a macvlan; `mac` is its MAC address,
    to be restored."""

    mode: str = "passthru"
    sibling: bool = False
    mac: str = ""

    def check(self) -> None:
        if self.sibling and self.mode in ("", "passthru"):
            raise NetworkError(
                f"device: {self.device} is a macvlan of mode {self.mode or 'source'}, beside which "
                "no macvtap can be; use the model tcfilter, or a macvlan of mode bridge"
            )
        with self.inside() as nl:
            if self.link(nl).master and not self.sibling:
                raise NetworkError(
                    f"device: {self.device} is a port of a bridge or bond, and no macvtap can be "
                    "on it; use the model tcfilter, or take it out of there"
                )
            self.check_name(nl)
            if self._uses_ingress:
                limits.check_ingress(nl, self.index, self.device)

    @property
    def _uses_ingress(self) -> bool:
        return self.sibling or bool(self.rx_limit)

    def attach(self, queues: int, uid: int) -> Tap:
        refuse_queues(queues, self.device)
        if self.sibling and self.rx_limit:
            raise NetworkError(
                f"device: {self.device} is a macvlan: what arrives at a macvtap beside it can't be "
                "limited; use the model tcfilter, or rx_rate_limiter_max_rate = 0"
            )
        with self.inside() as nl:
            link = self.link(nl)
            try:
                return self._attach(nl, link)
            except OSError as error:
                raise NetworkError(
                    f"{link.name} can't be joined by a macvtap: {error.strerror}"
                ) from None

    def _attach(self, nl: Netlink, link: Link) -> Tap:
        if self.sibling:
            tc.drop_ingress(nl, link.index)
            _change_mac(nl, link.index, _another(self.mac))
        links.add_macvtap(nl, self.name, link.index, self.mode)
        made = links.named(nl, self.name)
        if self.sibling:
            links.set_mac(nl, made.index, self.mac)
        links.set_all_multicast(nl, made.index, True)
        companion.set_up(nl, made.index, link)
        limits.limit_egress(nl, made.index, self.tx_limit)
        limits.limit_ingress(nl, link.index, self.rx_limit, self.index)
        return Tap(macvtap.open_queues(self.name, 1))

    def is_joined(self, link: Link) -> bool:
        """The macvtap goes when the interface leaves its namespace."""
        with self.inside() as nl:
            return links.find(nl, self.name) is not None

    def mac_for(self, link: Link, mac: str) -> str:
        return mac if self.sibling and link.mac == _another(mac) else link.mac

    def set_mac(self, mac: str) -> None:
        """Of two macvlans, only one can have it. In mode `passthru` the macvtap has it already.
        Raises OSError."""
        if self.sibling:
            with self.inside() as nl:
                _change_mac(nl, self.index, _another(mac))
                links.set_mac(nl, links.named(nl, self.name).index, mac)

    def detach(self) -> None:
        with self.inside() as nl:
            if made := links.find(nl, self.name):
                links.remove(nl, made.index)
            limits.lift_ingress(nl, self.index, self.rx_limit, self.index)
            if self.sibling and links.at(nl, self.index):
                _change_mac(nl, self.index, self.mac)
                tc.remove_ingress(nl, self.index)


@dataclass(frozen=True)
class ExistingMacvtap(WithCompanion):
    """A macvtap that exists already. Its mode, MAC and parent stay as they are."""

    was_up: bool = True
    took_all_multicast: bool = False

    def check(self) -> None:
        if self.rx_limit:
            raise NetworkError(
                f"device: {self.device}: what arrives at a macvtap can't be limited; limit it at "
                "its parent, and set rx_rate_limiter_max_rate = 0"
            )

    def attach(self, queues: int, uid: int) -> Tap:
        with self.inside() as nl:
            link = self.link(nl)
            try:
                limits.limit_egress(nl, link.index, self.tx_limit)
                fds = macvtap.open_queues(link.name, max(queues, 1))
            except OSError as error:
                raise NetworkError(
                    f"device: {link.name} can't be opened: {error.strerror}"
                ) from None
            try:
                links.set_all_multicast(nl, link.index, True)
                links.set_up(nl, link.index)
            except NetlinkError as error:
                for fd in fds:
                    os.close(fd)
                raise NetworkError(f"device: {link.name} can't be brought up: {error}") from None
        return Tap(fds)

    def is_joined(self, link: Link) -> bool:
        return True

    def set_mtu(self, mtu: int) -> None:
        """Do nothing: the VM's MTU comes from this macvtap."""

    def detach(self) -> None:
        with self.inside() as nl:
            if links.at(nl, self.index):
                limits.lift_egress(nl, self.index, self.tx_limit)
                links.set_all_multicast(nl, self.index, self.took_all_multicast)
                if not self.was_up:
                    links.set_down(nl, self.index)


def _change_mac(nl: Netlink, index: int, mac: str) -> None:
    """Change the MAC address, and keep the static neighbours, which the kernel drops with the old
    one."""
    static = [entry for entry in neighbours.listing(nl) if entry.device == index]
    links.set_mac(nl, index, mac)
    for entry in static:
        neighbours.add(nl, entry)


def _another(mac: str) -> str:
    """Return a MAC address that differs in its last bits and is locally administered."""
    first, last = int(mac[:2], 16), int(mac[-2:], 16)
    return f"{first | 2:02x}{mac[2:-2]}{last ^ 0x80:02x}"

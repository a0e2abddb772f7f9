"""An existing TAP as endpoint: another program has made and connected it.

Its frames go to the VM unchanged. `detach` gives it back as it was.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tapwright.endpoint import limits
from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import Tap
from tapwright.linux import links, netns, tuntap
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink


@dataclass(frozen=True)
class ExistingTap:
    """A TAP as it was found, and as it will be left. `settings` are those of `tuntap.Tap`; limits
    are in bits a second."""

    netns: str
    device: str
    index: int
    was_up: bool
    settings: Sequence[Any]
    rx_limit: int = 0
    tx_limit: int = 0

    def check(self) -> None:
        """Raises NetworkError if the TAP has filters, because a limit needs one."""
        with netns.entered(self.netns), Netlink() as nl:
            if self.tx_limit:
                limits.check_ingress(nl, self.index, self.device)

    def attach(self, queues: int, uid: int) -> Tap:
        """Attach to queues of the TAP, and bring it up. Raises NetworkError; call `detach` all the
        same."""
        if self._tap.taken:
            # Even if it has free queues: two owners would each get a part of the frames.
            raise NetworkError(f"device: {self.device}: it is in use by {_holders(self.device)}")
        if queues > 1 and not self._tap.multi_queue:
            raise NetworkError(
                f"queues: {queues}: {self.device} was made for one queue; make it with multi_queue"
            )
        try:
            with netns.entered(self.netns), Netlink() as nl:
                link = links.at(nl, self.index)
                if link is None:
                    raise NetworkError(f"device: {self.device} has gone")
                # By its present name: TUNSETIFF makes a TAP that it does not find.
                fds = tuntap.attach(link.name, self._tap, max(queues, 1))
                try:
                    links.set_up(nl, self.index)
                    limits.limit_egress(nl, self.index, self.rx_limit)
                    limits.limit_ingress(nl, self.index, self.tx_limit, self.index)
                except BaseException:
                    for fd in fds:
                        os.close(fd)
                    raise
        except OSError as error:
            raise NetworkError(f"device: {self.device}: {_reason(self.device, error)}") from None
        return Tap(fds)

    def is_joined(self, link: Link) -> bool:
        return True

    def mac_for(self, link: Link, mac: str) -> str:
        return link.mac

    def set_mac(self, mac: str) -> None:
        """Do nothing: the VM's MAC address comes from this TAP."""

    def set_mtu(self, mtu: int) -> None:
        """Do nothing: the VM's MTU comes from this TAP."""

    def detach(self) -> None:
        """Restore the TAP, after its descriptors have been closed. If it is gone, or another
        process holds it, only remove its limits. Raises OSError."""
        with netns.entered(self.netns), Netlink() as nl:
            limits.lift_egress(nl, self.index, self.rx_limit)
            limits.lift_ingress(nl, self.index, self.tx_limit, self.index)
            link = links.at(nl, self.index)
            if link is None or link.kind != tuntap.KIND:
                return
            try:
                tuntap.reset(link.name, self._tap)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return
                raise
            if not self.was_up:
                links.set_down(nl, self.index)

    @property
    def _tap(self) -> tuntap.Tap:
        return tuntap.Tap(*self.settings)


def _reason(name: str, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return f"it is in use by {_holders(name)}"
    return f"it can't be taken: {error.strerror}"


def _holders(name: str) -> str:
    pids = tuntap.holders(name)
    return ", ".join(f"{_command(pid)} (pid {pid})" for pid in pids) or "a process out of sight"


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "a process"

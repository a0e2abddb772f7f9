"""A vhost-user backend as endpoint: Open vSwitch with DPDK, testpmd, … moves the frames between
its own process and the guest's memory, over a unix socket that it shares with QEMU.

Who listens on the socket is found out: a backend that does (Open vSwitch's port type
dpdkvhostuser) is connected to; else QEMU listens, and the backend comes as a client
(dpdkvhostuserclient), again and again when it restarts.

QEMU 7.2 takes no connected or listening descriptor for vhost-user, and its user has no right to
the backend's directory. So it is given, behind a descriptor that opens nothing, the right to one
socket or to one directory of its own, for as long as it takes to open the socket.
"""

import os
import shutil
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import VhostUser
from tapwright.linux.links import Link


@dataclass(frozen=True)
class VhostUserSocket:
    """The backend's socket; `owner` is the user id of the one that was there."""

    device: str
    socket: str
    owner: int | None

    def check(self) -> None:
        """Raises NetworkError."""
        if os.path.lexists(self.socket) and not stat.S_ISSOCK(os.stat(self.socket).st_mode):
            raise NetworkError(f"vhostUserSocket: {self.socket} is there and is no socket")

    def attach(self, queues: int, uid: int) -> VhostUser:
        """Prepare the socket for a QEMU of that user id, which opens it then.

        Raises NetworkError; call `detach` all the same.
        """
        try:
            return self._attach(max(queues, 1), uid)
        except OSError as error:
            raise NetworkError(
                f"vhostUserSocket: {self.socket} can't be used: {error.strerror}"
            ) from None

    def _attach(self, queues: int, uid: int) -> VhostUser:
        path = self.socket
        if _somebody_listens(path):
            owner = os.stat(path).st_uid
            os.chown(path, uid, -1)
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            return VhostUser(fd, "", queues, opened=lambda: os.chown(path, owner, -1))
        _remove_dead(path)
        workshop = _workshop(path)
        shutil.rmtree(workshop, ignore_errors=True)
        workshop.mkdir(mode=0o700)
        os.chown(workshop, uid, uid)
        fd = os.open(workshop, os.O_PATH | os.O_CLOEXEC)
        return VhostUser(fd, Path(path).name, queues, opened=lambda: _publish(path))

    def is_joined(self, link: Link, mac: str) -> bool:
        return True

    def set_mtu(self, mtu: int) -> None:
        """The backend's is its own affair."""

    def detach(self) -> None:
        """Remove the socket that QEMU listened on; a backend's own is left, and `owner`'s again.
        Raises OSError."""
        shutil.rmtree(_workshop(self.socket), ignore_errors=True)
        if not _somebody_listens(self.socket):
            _remove_dead(self.socket)
        elif self.owner is not None:
            os.chown(self.socket, self.owner, -1)


def of(device: str, path: str) -> VhostUserSocket:
    """The endpoint of a socket as it is now."""
    try:
        owner = os.stat(path).st_uid
    except OSError:
        owner = None
    return VhostUserSocket(device, path, owner)


def _publish(path: str) -> None:
    """Put the socket that QEMU made in its place, for root and the group of the directory: who
    connects to it sees all of the guest's memory."""
    made = _workshop(path) / Path(path).name
    os.chown(made, 0, made.parent.parent.stat().st_gid)
    made.chmod(0o660)
    os.link(made, path)  # unlike rename, it does not replace what came in between
    made.unlink()
    made.parent.rmdir()


def _workshop(path: str) -> Path:
    """A directory in which QEMU may make its socket, beside the place of it."""
    return Path(path).with_name(f".{Path(path).name}.tapwright")


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            pass  # so many wait there already that we would have to, too
    return True


def _remove_dead(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass

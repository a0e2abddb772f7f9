"""A vhost-user backend as endpoint: Open vSwitch with DPDK, testpmd, … moves frames between its own
process and the guest's memory, over a unix socket that it shares with QEMU.

If a backend listens on the socket (Open vSwitch's port type dpdkvhostuser), QEMU connects to it.
Otherwise QEMU listens, and the backend connects (dpdkvhostuserclient), again after each restart.

QEMU 7.2 takes no connected or listening descriptor for vhost-user, and its user may not use the
backend's directory. So QEMU gets a directory of its own, until it has opened the socket: with
another name of the backend's socket, or for the socket that it makes.

Directory and socket belong to a switch or to QEMU, either of which can replace them by a link to
any file at any moment. So this module works with descriptors, and only on sockets.
"""

import contextlib
import errno
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import VhostUser
from tapwright.linux.files import closing
from tapwright.linux.links import Link


class _OtherError(OSError):
    """The place of a socket has something else."""


@dataclass(frozen=True)
class VhostUserSocket:
    """The backend's socket. `owner` is the user id of the socket that was there."""

    device: str
    socket: str
    owner: int | None

    def check(self) -> None:
        try:
            with _place(self.socket) as (directory, name), _opened(directory, name):
                pass
        except OSError as error:
            raise self._unusable(error) from None

    def attach(self, queues: int, uid: int) -> VhostUser:
        """Prepare the socket for a QEMU of that user id, which then opens it.

        Raises NetworkError; call `detach` all the same.
        """
        try:
            return _attach(self.socket, max(queues, 1), uid)
        except OSError as error:
            raise self._unusable(error) from None

    def is_joined(self, link: Link) -> bool:
        return True

    def mac_for(self, link: Link, mac: str) -> str:
        return mac

    def set_mac(self, mac: str) -> None:
        """Do nothing: the backend learns of it from the frames."""

    def set_mtu(self, mtu: int) -> None:
        """Do nothing: the backend decides its MTU."""

    def detach(self) -> None:
        """Remove the socket on which QEMU listened. A backend's own socket stays, and belongs to
        `owner` again; anything else stays, too. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), _place(self.socket) as (directory, name):
            _remove_workshop(directory, name)
            with contextlib.suppress(_OtherError), _opened(directory, name) as fd:
                if fd is None:
                    return
                if not _somebody_listens(fd):
                    os.unlink(name, dir_fd=directory)
                elif self.owner is not None:
                    os.chown(_path(fd), self.owner, -1)

    def _unusable(self, error: OSError) -> NetworkError:
        return NetworkError(f"vhostUserSocket: {self.socket} can't be used: {error.strerror}")


def of(device: str, path: str) -> VhostUserSocket:
    """Return the endpoint of a socket with its present state."""
    try:
        owner = os.lstat(path).st_uid
    except OSError:
        owner = None
    return VhostUserSocket(device, path, owner)


def _attach(path: str, queues: int, uid: int) -> VhostUser:
    with _place(path) as (directory, name):
        with _opened(directory, name) as there:
            if there is not None and _somebody_listens(there):
                owner = os.fstat(there).st_uid
                os.chown(_path(there), uid, -1)
                fd = _made_workshop(directory, name, uid, there)
                return VhostUser(fd, name, False, queues, opened=lambda: _give_back(path, owner))
            if there is not None:
                os.unlink(name, dir_fd=directory)
        fd = _made_workshop(directory, name, uid)
        return VhostUser(fd, name, True, queues, opened=lambda: _publish(fd, path))


def _made_workshop(directory: int, name: str, uid: int, there: int | None = None) -> int:
    """Return a descriptor of a new directory for QEMU, in which the socket `there`, if it is given,
    has another name."""
    _remove_workshop(directory, name)
    os.mkdir(_workshop(name), 0o700, dir_fd=directory)
    # Not O_PATH: QEMU since 10.2 closes its monitor when it gets such a descriptor.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    made = os.open(_workshop(name), flags, dir_fd=directory)
    try:
        if os.fstat(made).st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"another process put another {_workshop(name)} beside it")
        if there is not None:
            os.link(_path(there), name, dst_dir_fd=made, follow_symlinks=True)
        os.fchown(made, uid, uid)
    except OSError:
        os.close(made)
        raise
    return made


def _give_back(path: str, owner: int) -> None:
    """Let a backend's socket belong to its owner again, and have one name. What the backend has put
    in its place meanwhile stays as it is. Raises OSError."""
    with _place(path) as (directory, name):
        _remove_workshop(directory, name)
        with contextlib.suppress(_OtherError), _opened(directory, name) as there:
            if there is not None:
                os.chown(_path(there), owner, -1)


def _publish(workshop: int, path: str) -> None:
    """Move the socket that QEMU made to its place, for root and the group of the directory. A
    program that connects to it sees all of the guest's memory. Raises OSError."""
    with _place(path) as (directory, name):
        with _opened(workshop, name) as made:
            if made is None:
                raise FileNotFoundError(errno.ENOENT, "QEMU made no socket")
            os.chown(_path(made), 0, os.fstat(directory).st_gid)
            os.chmod(_path(made), 0o660)
            # Unlike rename, link does not replace a file that was made in between.
            os.link(_path(made), name, dst_dir_fd=directory, follow_symlinks=True)
        _remove_workshop(directory, name)


@contextlib.contextmanager
def _place(path: str) -> Iterator[tuple[int, str]]:
    """Yield (descriptor of the directory, name in it) of a socket. Raises OSError."""
    directory, name = os.path.split(path)
    with closing(os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        yield fd, name


@contextlib.contextmanager
def _opened(directory: int, name: str) -> Iterator[int | None]:
    """Yield a descriptor (O_PATH) of a socket in a directory, None if there is none. Raises OSError
    for anything else, and for a socket with a second name."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        yield None
        return
    with closing(fd):
        status = os.fstat(fd)
        if stat.S_ISLNK(status.st_mode):
            raise _OtherError(errno.ELOOP, "it is a link; name the socket itself")
        if not stat.S_ISSOCK(status.st_mode):
            raise _OtherError(errno.ENOTSOCK, "it is there and is no socket")
        if status.st_nlink > 1:
            raise _OtherError(errno.EMLINK, "it has another name, too: it may be another program's")
        yield fd


def _path(fd: int) -> str:
    """Return a path of what an O_PATH descriptor leads to, for calls that take no descriptor."""
    return f"/proc/self/fd/{fd}"


def _workshop(name: str) -> str:
    """Return the directory in which QEMU may open its socket, beside the socket's place."""
    return f".{name}.tapwright"


def _remove_workshop(directory: int, name: str) -> None:
    # rmtree follows no link, whatever is put there meanwhile (rmtree.avoids_symlink_attacks).
    shutil.rmtree(_workshop(name), ignore_errors=True, dir_fd=directory)


def _somebody_listens(fd: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(_path(fd))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            pass  # the backend has so many waiting clients that another one would wait, too
    return True

"""Network namespaces, named by path as `ip netns` keeps them (ip-netns(8), setns(2))."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from tapwright.linux import libc, links
from tapwright.linux.files import closing
from tapwright.linux.netlink import Netlink

DIRECTORY = "/run/netns"
OWN = "/proc/self/ns/net"
"""The path of this process's own namespace."""
_HOSTS = "/proc/1/ns/net"


def path_of(name: str) -> str:
    return f"{DIRECTORY}/{name}"


def create(path: str) -> None:
    """Make a namespace with its loopback up, bound at `path`; `ip netns` lists it.

    Raises FileExistsError when the path is taken.
    """
    _prepare_directory()
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    try:
        with _own_netns_kept():
            libc.unshare(libc.CLONE_NEWNET)
            libc.mount("/proc/thread-self/ns/net", path, libc.MS_BIND)
            with Netlink() as nl:
                links.set_up(nl, 1)
    except BaseException:
        remove(path)
        raise


def bind(path: str, target: str) -> None:
    """Bind the namespace at `path` also at `target`; `ip netns` lists it.

    Raises FileExistsError when the target is taken.
    """
    _prepare_directory()
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    try:
        libc.mount(path, target, libc.MS_BIND)
    except BaseException:
        remove(target)
        raise


def nameless() -> int:
    """Make a namespace that has no path, and ends with its last user; return its descriptor, for
    use as /proc/self/fd/N. Its loopback is down."""
    with _own_netns_kept():
        libc.unshare(libc.CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def remove(path: str) -> None:
    """Unbind the namespace and remove its path. A missing path is no error.

    The namespace itself ends with its last process, socket or TAP.
    """
    with contextlib.suppress(FileNotFoundError):
        while True:
            try:
                libc.unmount(path)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    break  # not a mount point, or not any more
                raise
        os.unlink(path)


def exists(path: str) -> bool:
    """Whether a namespace is bound at `path`."""
    try:
        with entered(path):
            return True
    except OSError:
        return False


def is_own(path: str) -> bool:
    """Whether the namespace of this process is bound at `path`."""
    with contextlib.suppress(OSError):
        return os.path.samefile(path, OWN)
    return False


def is_hosts(path: str) -> bool:
    """Whether the namespace bound at `path` is that of the host's first process."""
    with contextlib.suppress(OSError):
        return os.path.samefile(path, _HOSTS)
    return False


def is_of_a_process(path: str) -> bool:
    """Whether the path is in procfs (/proc/PID/ns/net, /proc/PID/fd/N), or a link to such a path.
    Such a namespace has no name of its own, and the path ends with the process."""
    folder = os.path.realpath(os.path.dirname(path))
    is_in_proc = re.match(r"/proc/\d+(/|$)", folder) is not None
    return os.path.exists(path) and (is_in_proc or not os.path.exists(os.path.realpath(path)))


def for_others(path: str) -> str:
    """Return the same path for other processes: without links on the way, such as /proc/self."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


@contextlib.contextmanager
def entered(path: str) -> Iterator[None]:
    """Enter the namespace at `path`, in this thread only, while the block lasts.

    Sockets and TAPs that the block opens stay there. Never await inside. Raises OSError.
    """
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd, _own_netns_kept():
        libc.setns(fd, libc.CLONE_NEWNET)
        yield


@contextlib.contextmanager
def _own_netns_kept() -> Iterator[None]:
    with closing(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as own:
        try:
            yield
        finally:
            libc.setns(own, libc.CLONE_NEWNET)


def _prepare_directory() -> None:
    """Make the directory a shared mount, as `ip netns add` does, so that every mount namespace sees
    namespaces bound there, and can remove them."""
    os.makedirs(DIRECTORY, 0o755, exist_ok=True)
    flags = libc.MS_SHARED | libc.MS_REC
    try:
        libc.mount("", DIRECTORY, flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        libc.mount(DIRECTORY, DIRECTORY, libc.MS_BIND | libc.MS_REC)
        libc.mount("", DIRECTORY, flags)

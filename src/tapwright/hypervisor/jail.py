"""The jail of a program that a guest may take over: QEMU, or the daemon of a share.

A jail is a mount namespace whose root is an empty, read-only filesystem in memory. The directories
from which the program is loaded are mounted there, read-only; `seal` unmounts them after the start,
before a guest can speak to the program. The program is the first process of a pid namespace, and
has its own namespaces for the network, System V IPC, the host name and control groups. None of this
is visible, or has an effect, outside.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tapwright.linux import libc, mounts

SYSTEM = ("usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin", "opt", "nix", "gnu")
"""The directories of a root that have programs, and what programs are loaded from. A directory that
is a link stays a link in the jail."""

_NAMESPACES = libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWCGROUP
_HOST_NAME = "tapwright"
_OF_ROOT = mounts.READ_ONLY | mounts.NO_SETUID | mounts.NO_DEVICES | mounts.NO_EXECUTION
_ONLY_PROCESSES = {"subset": "pid", "hidepid": "invisible"}
_ROOT_SIZE = "1m"


@dataclass
class Jail:
    """`tree` is the jail's root, which this process can write to, and `namespace` its mount
    namespace; both are descriptors. `processes` is the place in it that shows its own processes,
    and no others."""

    tree: int
    namespace: int
    processes: str
    _loaded_from: list[str]

    @classmethod
    def make(
        cls, sources: Mapping[str, str], processes: str, devices: Iterable[str] = ()
    ) -> "Jail":
        """Make a jail. `sources` are files and directories of the host by their place, such as
        `usr` or `boot/vmlinuz`; none may be within another one. Device files work only in places of
        `devices`. Raises OSError."""
        with contextlib.ExitStack() as undo:
            tree = libc.detached_mount("tmpfs", mode="0755", size=_ROOT_SIZE)
            undo.callback(os.close, tree)
            with contextlib.ExitStack() as done:
                below = []
                for place, source in sources.items():
                    if _is_alias(place, sources):
                        os.symlink(os.readlink(source), place, dir_fd=tree)
                        continue
                    fd = mounts.clone(source, read_only=True)
                    done.callback(os.close, fd)
                    no_devices = 0 if place in devices else mounts.NO_DEVICES
                    mounts.restrict(fd, mounts.NO_SETUID | no_devices)
                    make_place(tree, place, mounts.is_directory(fd))
                    below.append((fd, f"/{place}"))
                make_place(tree, processes, is_directory=True)
                root = mounts.clone(tree, recursive=False, read_only=True)
                done.callback(os.close, root)
                mounts.restrict(root, _OF_ROOT)
                namespace = mounts.new_namespace(root, below)
            undo.pop_all()
        return cls(tree, namespace, processes, [*sources])

    def enter(self) -> None:
        """Move the calling process, which root has started alone (`linux.process.alone`), into the
        jail. For use between fork and exec. Raises OSError."""
        libc.setns(self.namespace, libc.CLONE_NEWNS)
        libc.unshare(_NAMESPACES)
        libc.set_host_name(_HOST_NAME)
        fd = libc.detached_mount("proc", **_ONLY_PROCESSES)
        mounts.restrict(fd, _OF_ROOT)
        mounts.attach(fd, f"/{self.processes}")
        os.close(fd)
        os.setsid()

    def seal(self, *, without_processes: bool = False) -> None:
        """Unmount the directories from which the program was loaded, and with `without_processes`
        also /proc. Files that the program has open stay open. Raises OSError."""
        if without_processes:
            self._loaded_from.append(self.processes)
        mounts.within(self.namespace, self._detach)
        while self._loaded_from:
            remove_place(self.tree, self._loaded_from.pop())

    def close(self) -> None:
        """Close the descriptors; the jail ends with its processes."""
        os.close(self.namespace)
        os.close(self.tree)

    def _detach(self) -> None:
        for place in self._loaded_from:
            if not os.path.islink(f"/{place}"):
                libc.unmount(f"/{place}")


def _is_alias(place: str, sources: Mapping[str, str]) -> bool:
    """Whether a place is a link to, or into, another source, as /lib is to /usr/lib."""
    source = sources[place]
    if not os.path.islink(source) or source != f"/{place}":
        return False
    top = os.path.realpath(source).split("/")[1]
    return top != place and sources.get(top) == f"/{top}"


def _above(place: str) -> list[str]:
    """Return the directories above a place, the uppermost first."""
    names = place.split("/")
    return ["/".join(names[:number]) for number in range(1, len(names))]


def make_place(tree: int, place: str, is_directory: bool) -> None:
    """Make a mount point, with the directories above it. Raises OSError."""
    for directory in [*_above(place), *([place] if is_directory else [])]:
        try:
            os.mkdir(directory, dir_fd=tree)
        except FileExistsError:
            if directory == place:
                raise
        else:
            os.chmod(directory, 0o755, dir_fd=tree)  # whatever the caller's umask(2) is
    if not is_directory:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(place, flags, 0o644, dir_fd=tree))


def remove_place(tree: int, place: str) -> None:
    """Remove a mount point, and the directories above it that are empty then. Raises OSError."""
    status = os.stat(place, dir_fd=tree, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        os.rmdir(place, dir_fd=tree)
    else:
        os.unlink(place, dir_fd=tree)
    with contextlib.suppress(OSError):
        for above in reversed(_above(place)):
            os.rmdir(above, dir_fd=tree)


def system() -> Iterator[str]:
    """Yield the directories of SYSTEM that this host has."""
    return (name for name in SYSTEM if os.path.isdir(f"/{name}"))

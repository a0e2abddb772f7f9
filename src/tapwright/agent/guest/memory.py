"""Memory that containers share: a tmpfs for each one that the host has (`oci.memory`).

A tmpfs has the wanted size if the guest has that much memory, else the default size of tmpfs. It
exists from its first container to the deletion of its last one, or, if it is `lasting`, until the
guest ends.
"""

import contextlib
import os
import stat
from typing import Any

from tapwright.agent.guest.refusal import FAILED, RefusedError
from tapwright.linux.files import closing

DIRECTORY = "/run/tapwright/memory"
# The mounts for containers that should see a directory of a tmpfs, and not all of it.
_PLACES = "/run/tapwright/memory-below"

_KEPT_BYTES = 32 << 20

Json = dict[str, Any]


class Memory:
    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}
        self._lasting: set[str] = set()
        self._places: dict[str, list[str]] = {}

    def give(self, container: str, config: Json) -> None:
        """Make shared memory the source of those mounts of a container's configuration that have
        the key `memory`, and remove the key. Raises RefusedError, OSError; the caller then releases
        what the container got before the error."""
        for mount in config.get("mounts", ()):
            wanted = mount.pop("memory", None)
            if wanted and (wanted["make"] or os.path.ismount(f"{DIRECTORY}/{wanted['name']}")):
                mount["source"] = self._given(container, wanted)

    def release(self, container: str) -> None:
        """Release the memory of a container that was deleted."""
        for place in self._places.pop(container, ()):
            unmount(place)
        for name, users in list(self._users.items()):
            users.discard(container)
            if not users and name not in self._lasting:
                del self._users[name]
                unmount(f"{DIRECTORY}/{name}")

    def _given(self, container: str, wanted: Json) -> str:
        path = f"{DIRECTORY}/{wanted['name']}"
        root, *below = wanted["directories"]
        if not os.path.ismount(path):
            # As engines call theirs for /dev/shm, and the kubelet its volumes.
            source = "tmpfs" if wanted["lasting"] else "shm"
            _mount(source, path, wanted["bytes"], root)
        self._users.setdefault(wanted["name"], set()).add(container)
        if wanted["lasting"]:
            self._lasting.add(wanted["name"])
        if not below:
            return path
        places = self._places.setdefault(container, [])
        place = f"{_PLACES}/{container}.{len(places)}"
        _show(path, below, place)
        places.append(place)
        return place


def clear() -> None:
    """Unmount what an agent that died has left."""
    for directory in (_PLACES, DIRECTORY):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(directory):
                unmount(f"{directory}/{name}")


def _mount(source: str, path: str, size: int, root: Json) -> None:
    from tapwright.linux import libc, mounts

    # A larger tmpfs would end the guest when it is full; the default size of tmpfs is half of the
    # memory.
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - _KEPT_BYTES:
        size = 0
    options = {
        "source": source,
        "mode": f"{root['mode']:o}",
        "uid": str(root["uid"]),
        "gid": str(root["gid"]),
    }
    if size:
        options["size"] = str(size)
    os.makedirs(path, exist_ok=True)
    with closing(libc.detached_mount("tmpfs", **options)) as fd:
        mounts.attach(fd, path)


def _show(root: str, below: list[Json], place: str) -> None:
    """Mount a directory of a tmpfs at a place."""
    from tapwright.linux import mounts

    with contextlib.ExitStack() as opened:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, fd)
        for directory in below:
            fd = _entered(fd, directory)
            opened.callback(os.close, fd)
        os.makedirs(_PLACES, exist_ok=True)
        if mounts.is_directory(fd):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
        clone = mounts.clone(fd, recursive=False)
        opened.callback(os.close, clone)
        mounts.attach(clone, place)


def _entered(parent: int, directory: Json) -> int:
    """Open a directory in another one, and make it if it does not exist. No link is followed:
    containers can make links there that lead anywhere in the guest."""
    name = directory["name"]
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        is_new = True
    except FileExistsError:
        is_new = False
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise RefusedError(
                f"{name!r} in a volume in memory is a link, which can't be mounted", FAILED
            )
        if is_new:
            os.chown(f"/proc/self/fd/{fd}", directory["uid"], directory["gid"])
            os.chmod(f"/proc/self/fd/{fd}", directory["mode"])
    except BaseException:
        os.close(fd)
        raise
    return fd


def unmount(path: str) -> None:
    """Unmount a path, and remove it. A path that is not mounted is no failure."""
    from tapwright.linux import libc

    with contextlib.suppress(OSError):
        libc.unmount(path)
    with contextlib.suppress(OSError):
        os.rmdir(path) if os.path.isdir(path) else os.unlink(path)

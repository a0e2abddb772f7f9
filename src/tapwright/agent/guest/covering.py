"""Shows the host's sockets in directories that containers have mounted.

The file of such a socket is one of another kernel, and nobody listens there in the guest's. So the
counterpart (`sockets`) is mounted over the file, in the mount namespace of each container that has
the directory. When the host removes the file, the kernel removes such mounts.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tapwright.agent import protocol
from tapwright.linux.files import closing

Json = dict[str, Any]
Binds = list[tuple[str, str]]
"""(place in the share, destination in the container) of each directory of the share."""


class _Cover(NamedTuple):
    """A detached mount, its place in the container, and what must be there."""

    fd: int
    target: str
    covered: tuple[int, int]


class Covers:
    """The counterparts to show, by the paths of their sockets in the share."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def change(self, shown: Mapping[str, int], hidden: Iterable[str]) -> None:
        for path in hidden:
            self._numbers.pop(path, None)
        self._numbers.update(shown)

    def clear(self) -> None:
        self._numbers.clear()

    def give(self, pid: int, binds: Binds) -> str:
        """Show all of them to a container, before its program begins, by the pid of its process;
        return what failed, or ""."""
        if not self._numbers:
            return ""
        try:
            apply(pid, binds, self._numbers)
        except OSError as error:
            return f"sockets of the host: {error}"
        return ""


def binds_of(config: Json) -> Binds:
    """Those of a container's configuration."""
    below = f"{protocol.SHARE}/"
    return [
        (mount["source"].removeprefix(below), mount["destination"])
        for mount in config.get("mounts", ())
        if mount.get("type") == "bind" and str(mount.get("source")).startswith(below)
    ]


def apply(pid: int, binds: Binds, shown: Mapping[str, int], hidden: Iterable[str] = ()) -> None:
    """Mount the counterparts `shown`, by their paths in the share, in the mount namespace of a
    process, and unmount those at the paths `hidden`. A container that has covered such a path by a
    mount of its own keeps that. Raises OSError."""
    from tapwright.linux import mounts

    gone = [target for path in hidden for target in _targets(path, binds)]
    covers: list[_Cover] = []
    with contextlib.ExitStack() as opened:
        for path, number in shown.items():
            targets = _targets(path, binds)
            if targets and (covered := _socket_at(f"{protocol.SHARE}/{path}")):
                for target in targets:
                    fd = mounts.clone(f"{protocol.SOCKETS}/{number}")
                    opened.enter_context(closing(fd))
                    covers.append(_Cover(fd, target, covered))
        if covers or gone:
            of_counterparts = os.stat(protocol.SOCKETS).st_dev
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                mounts.within_that_of(pid, lambda: _apply(covers, gone, of_counterparts))


def _apply(covers: list[_Cover], gone: list[str], of_counterparts: int) -> None:
    from tapwright.linux import libc, mounts

    for target in gone:
        found = _socket_at(target)
        if found and found[0] == of_counterparts:
            libc.unmount(target)
    for cover in covers:
        if _socket_at(cover.target) == cover.covered:
            mounts.attach(cover.fd, cover.target)


def _targets(path: str, binds: Binds) -> list[str]:
    place = protocol.place_of(path)
    return [
        f"{destination.rstrip('/')}{path.removeprefix(place)}"
        for source, destination in binds
        if source == place
    ]


def _socket_at(path: str) -> tuple[int, int] | None:
    """What identifies a socket; None for other files, and where nothing is."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None

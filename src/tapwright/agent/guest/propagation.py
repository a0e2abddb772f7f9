"""What mounts of containers need beyond crun: some are passed on between containers, and in some no
link is followed.

A mount with `shared` or `slave` (mount_namespaces(7)) is made from one of the agent's that is
shared. So what a container mounts below a `shared` one shows in all containers that mount the same
source with one of these options, as by way of the host where they run there: one container mounts
a filesystem for another (Kubernetes: `Bidirectional` and `HostToContainer`). It stays in the guest.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from tapwright.agent.guest import memory
from tapwright.linux.files import closing

DIRECTORY = "/run/tapwright/propagation"

_OPTIONS = frozenset(("shared", "rshared", "slave", "rslave"))

Json = dict[str, Any]


class Propagation:
    """The agent's shared mounts, each from its first container to the deletion of its last one."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}
        self._users: dict[str, set[str]] = {}
        self._number = 0

    def give(self, container: str, config: Json) -> None:
        """Make shared mounts the sources of those mounts of a container's configuration that pass
        mounts on. Raises OSError; the caller then releases what the container got before."""
        for mount in config.get("mounts", ()):
            if mount.get("type") == "bind" and not _OPTIONS.isdisjoint(mount.get("options", ())):
                source = mount["source"]
                if os.path.isdir(source):
                    mount["source"] = self._place_of(source)
                    self._users.setdefault(source, set()).add(container)

    def release(self, container: str) -> None:
        """Release the mounts of a container that was deleted, with what is mounted below them."""
        for source, users in list(self._users.items()):
            users.discard(container)
            if not users:
                del self._users[source]
                memory.unmount(self._places.pop(source))

    def _place_of(self, source: str) -> str:
        from tapwright.linux import mounts

        if source not in self._places:
            place = f"{DIRECTORY}/{self._number}"
            self._number += 1
            os.makedirs(place)
            with closing(mounts.clone(source)) as fd:
                mounts.attach(fd, place)
            self._places[source] = place
            mounts.share(place)
        return self._places[source]


def clear() -> None:
    """Unmount what an agent that died has left."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(DIRECTORY):
            memory.unmount(f"{DIRECTORY}/{name}")


def without_links(config: Json) -> list[tuple[str, bool]]:
    """Return the places of those mounts of a container's configuration that have the key `links`,
    in which no link is to be followed, and whether that goes for those below, too; remove the
    key."""
    kinds = ((mount["destination"], mount.pop("links", None)) for mount in config.get("mounts", ()))
    return [(place, kind == "none below") for place, kind in kinds if kind]


def forbid_links(pid: int, places: Sequence[tuple[str, bool]]) -> str:
    """Let no link be followed in the mounts at `places` of a process's mount namespace, before it
    executes its program. Return what failed, or ""."""
    if not places:
        return ""
    from tapwright.linux import mounts

    def restrict() -> None:
        for place, recursive in places:
            mounts.restrict(place, mounts.NO_SYMLINKS, recursive=recursive)

    try:
        mounts.within_that_of(pid, restrict)
    except OSError as error:
        return f"nosymfollow: {error}"
    return ""

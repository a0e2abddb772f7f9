"""An existing TAP as endpoint: made, and connected to whatever, by somebody else.

Its frames go to the VM as they are. It is given back as it was found.
"""

import errno
import os
from typing import NamedTuple

from tapwright.errors import NetworkError
from tapwright.linux import links, netns, tuntap
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.linux.tuntap import Tap


class Found(NamedTuple):
    """A TAP as it was found, and will be left."""

    netns: str
    name: str
    index: int  # type: ignore[assignment]  # not tuple.index
    was_up: bool
    settings: Tap


def look_at(netns_path: str, link: Link) -> Found | None:
    """The TAP that an interface is, or None."""
    settings = tuntap.settings(link)
    return Found(netns_path, link.name, link.index, link.is_up, settings) if settings else None


def attach(tap: Found, queues: int) -> list[int]:
    """Take queues of the TAP and bring it up; return their descriptors.

    Raises NetworkError; call `detach` all the same.
    """
    if tap.settings.taken:
        # Also where it has queues left: frames would be shared out between two owners.
        raise NetworkError(f"device: {tap.name}: it is in use by {_holders(tap.name)}")
    if queues > 1 and not tap.settings.multi_queue:
        raise NetworkError(
            f"queues: {queues}: {tap.name} was made for one queue; make it with multi_queue"
        )
    try:
        with netns.entered(tap.netns), Netlink() as nl:
            fds = tuntap.attach(tap.name, tap.settings, queues)
            try:
                links.set_up(nl, tap.index)
            except BaseException:
                for fd in fds:
                    os.close(fd)
                raise
    except OSError as error:
        raise NetworkError(f"device: {tap.name}: {_reason(tap.name, error)}") from None
    return fds


def detach(tap: Found) -> None:
    """Make the TAP what it was, after its descriptors have been closed; nothing happens where it
    is gone, or in somebody else's hands. Raises OSError."""
    if not netns.exists(tap.netns):
        return
    with netns.entered(tap.netns), Netlink() as nl:
        link = links.find(nl, tap.name)
        if link is None or link.index != tap.index:
            return
        try:
            tuntap.reset(tap.name, tap.settings)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return
            raise
        if not tap.was_up:
            links.set_down(nl, tap.index)


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

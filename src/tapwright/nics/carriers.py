"""Keeps the carriers of the guest's NICs those of the namespace's interfaces, where no monitor
follows the namespace.

A switch may connect an interface long after the sandbox has started, and leave it at any time. A
container by runc sees that. Runs in the supervisor.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from tapwright.endpoint import discovery
from tapwright.errors import HypervisorError
from tapwright.linux import links, netns
from tapwright.linux.netlink import Netlink
from tapwright.nics.interfaces import Interfaces

_RTMGRP_LINK = 0x1
_PAUSE = 0.1
"""Seconds between two looks, however often an interface loses its carrier."""

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def followed(path: str, interfaces: Interfaces) -> AsyncIterator[None]:
    """Follow the carriers of the interfaces in the namespace at `path` for the length of the
    block."""
    try:
        with netns.entered(path):
            reports, nl = Netlink(_RTMGRP_LINK), Netlink()
    except OSError as error:
        _log.warning("the carriers of interfaces are not followed: %s", error)
        yield
        return
    with reports, nl:
        changed = asyncio.Event()
        changed.set()  # since they were joined, maybe
        asyncio.get_running_loop().add_reader(reports.fileno(), _note, reports, changed)
        following = asyncio.create_task(_follow(nl, interfaces, changed))
        try:
            yield
        finally:
            asyncio.get_running_loop().remove_reader(reports.fileno())
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def _note(reports: Netlink, changed: asyncio.Event) -> None:
    with contextlib.suppress(OSError):  # the kernel had to drop some
        reports.notifications()
    changed.set()


async def _follow(nl: Netlink, interfaces: Interfaces, changed: asyncio.Event) -> None:
    while True:
        await changed.wait()
        changed.clear()
        try:
            found = {link.index: link for link in links.listing(nl)}
            for index, nic in interfaces.followers().items():
                if index in found:
                    await interfaces.set_carrier(nic, discovery.has_carrier(found[index]))
        except (HypervisorError, OSError) as error:
            # The NIC has just gone, or QEMU has; a later change is another try.
            _log.info("a carrier was not carried: %s", error)
        await asyncio.sleep(_PAUSE)

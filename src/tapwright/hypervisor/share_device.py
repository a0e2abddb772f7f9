"""The device of a guest's share. It is plugged in when the guest runs, as NICs are.

A guest with this device can't be saved, and each guest has its own share. So templates are made
without the device.
"""

import asyncio
import contextlib
import socket
from typing import Any

from tapwright.agent.protocol import SHARE_TAG
from tapwright.errors import HypervisorError
from tapwright.hypervisor.ports import Ports
from tapwright.hypervisor.qmp import Qmp, QmpError

_DEVICE, _CHARDEV, _FD = "share", "share-daemon", "share"
_QUEUE = 1024
"""The most requests of virtio-fs on their way (QEMU's hw/virtio/vhost-user-fs.c)."""
_SECONDS = 10.0


class ShareDevice:
    """The device of one QEMU, in its port."""

    def __init__(self, qmp: Qmp, ports: Ports) -> None:
        self._qmp = qmp
        self._place = ports.share_place()
        self._gone: asyncio.Future[None] | None = None
        qmp.on_event("DEVICE_DELETED", self._device_deleted)

    async def plug(self, daemon: socket.socket) -> None:
        """Plug the device in, with the daemon behind this connection; the daemon has answered by
        then. The caller closes the socket, which has no further use. Raises HypervisorError."""
        await self._qmp.execute_with_fd(daemon.fileno(), "getfd", fdname=_FD)
        address = {"type": "fd", "data": {"str": _FD}}
        await self._qmp.execute(
            "chardev-add",
            id=_CHARDEV,
            backend={"type": "socket", "data": {"addr": address, "server": False}},
        )
        try:
            await self._qmp.execute(
                "device_add",
                driver="vhost-user-fs-pci",
                id=_DEVICE,
                chardev=_CHARDEV,
                tag=SHARE_TAG,
                **{"queue-size": _QUEUE},
                **self._place,
            )
        except HypervisorError:
            with contextlib.suppress(QmpError):
                await self._qmp.execute("chardev-remove", id=_CHARDEV)
            raise

    async def unplug(self) -> None:
        """Unplug the device, and wait until the guest has released it. Raises HypervisorError."""
        self._gone = asyncio.get_running_loop().create_future()
        await self._qmp.execute("device_del", id=_DEVICE)
        try:
            await asyncio.wait_for(self._gone, _SECONDS)
        except TimeoutError:
            raise HypervisorError(
                f"the guest did not release its share within {_SECONDS:g} s"
            ) from None
        await self._qmp.execute("chardev-remove", id=_CHARDEV)

    def _device_deleted(self, data: dict[str, Any]) -> None:
        if data.get("device") == _DEVICE and self._gone and not self._gone.done():
            self._gone.set_result(None)

"""The NICs of a running QEMU. Each one is plugged into a port, and unplugged again."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from tapwright.errors import HypervisorError
from tapwright.hypervisor.backends import Backend, Tap, VhostUser
from tapwright.hypervisor.ports import Ports
from tapwright.hypervisor.qmp import Qmp, QmpError

UNPLUG_SECONDS = 10.0
BACKEND_SECONDS = 10.0
_PAUSE = 0.02

_VHOST = "/dev/vhost-net"
# Without filters of its own the NIC gives the guest each frame that its interface has, as a veth
# does: also those for other stations, which a bridge floods. Newer guests' kernels set filters some
# time after a program has joined a group, and would miss what comes until then.
_HEARS_ALL = {"ctrl_rx": False}
# The speed that a veth reports (drivers/net/veth.c). Without it ethtool would show "unknown", and a
# program that adds up speeds would read -1.
_SPEED = {"speed": 10_000, "duplex": "full"}

_log = logging.getLogger(__name__)


class Nics:
    """All NICs of one QEMU, in its ports. With `vhost`, the kernel moves a TAP's frames, if it can.

    `on_gone(slot)` is called when a NIC is gone for good, even if the guest released it only after
    `unplug` had given up.
    """

    def __init__(self, qmp: Qmp, ports: Ports, kvm: bool, vhost: bool = True) -> None:
        self._qmp = qmp
        self._ports = ports
        self._kvm = kvm
        self._vhost = vhost
        self._plugged: dict[int, Backend] = {}
        self._leaving: dict[int, asyncio.Future[None]] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self.on_gone: Callable[[int], None] = lambda slot: None
        qmp.on_event("DEVICE_DELETED", self._device_deleted)

    async def plug(self, backend: Backend, mac: str) -> int:
        """Hot-plug a virtio NIC; return its slot. After a failure none of it is left.

        Raises HypervisorError.
        """
        slot = self.free_slot()
        self._plugged[slot] = backend
        try:
            async with contextlib.AsyncExitStack() as undo:
                if isinstance(backend, Tap):
                    await self._make_tap(slot, backend, undo)
                else:
                    await self._make_vhost_user(slot, backend, undo)
                await self._qmp.execute(
                    "device_add",
                    driver="virtio-net-pci",
                    id=f"nic{slot}",
                    netdev=f"net{slot}",
                    mac=mac,
                    romfile="",
                    **_HEARS_ALL,
                    **_SPEED,
                    **self._ports.place(slot),
                    **self._device_options(backend),
                )
                undo.pop_all()
        except BaseException:
            del self._plugged[slot]
            raise
        return slot

    def free_slot(self) -> int:
        """Return the slot that the next NIC will get. Raises HypervisorError if none is free."""
        slots = self._ports.slots
        slot = next((n for n in range(slots) if n not in self._plugged), None)
        if slot is None:
            raise HypervisorError(
                f"all {slots} slots for NICs are taken; remove one first, or have more in new "
                "sandboxes (pcie_root_port, or default_bridges, in [hypervisor.qemu])"
            )
        return slot

    async def unplug(self, slot: int) -> None:
        """Unplug a NIC and wait until the guest has released it. A NIC that has gone already is no
        error. Raises HypervisorError.

        After a failure the NIC is still there; it may go later, and the caller can try again.
        """
        if slot not in self._plugged:
            return
        asked_before = slot in self._leaving
        leaving = self._leaving.setdefault(slot, asyncio.get_running_loop().create_future())
        try:
            await self._qmp.execute("device_del", id=f"nic{slot}")
        except QmpError:
            if not asked_before:
                del self._leaving[slot]
                raise
        try:
            await asyncio.wait_for(asyncio.shield(leaving), UNPLUG_SECONDS)
        except TimeoutError:
            raise HypervisorError(
                f"the guest did not release the NIC within {UNPLUG_SECONDS:g} s; is it running?"
            ) from None

    async def set_link(self, slot: int, up: bool) -> None:
        """Give the guest's NIC a carrier, or remove it. Raises HypervisorError."""
        await self._qmp.execute("set_link", name=f"net{slot}", up=up)

    def _device_options(self, backend: Backend) -> dict[str, Any]:
        # A vector for each queue's two rings, one for control, one for configuration.
        options = {"mq": True, "vectors": 2 * backend.queues + 2} if backend.queues > 1 else {}
        if isinstance(backend, VhostUser) and not self._kvm:
            # Otherwise QEMU 7.2 crashes: it looks for KVM's interrupt of an MSI-X vector.
            options["vectors"] = 0
        return options

    async def _make_tap(self, slot: int, tap: Tap, undo: contextlib.AsyncExitStack) -> None:
        names: list[str] = []
        vhost: list[str] = []
        try:
            with _vhost_fds(tap.queues if self._vhost else 0) as vhost_fds:
                for passed, prefix, fds in ((names, "net", tap.fds), (vhost, "vhost", vhost_fds)):
                    for number, fd in enumerate(fds):
                        name = f"{prefix}{slot}-{number}"
                        await self._qmp.execute_with_fd(fd, "getfd", fdname=name)
                        passed.append(name)
            more = {"vhost": True, "vhostfds": ":".join(vhost)} if vhost else {}
            await self._qmp.execute(
                "netdev_add", type="tap", id=f"net{slot}", fds=":".join(names), **more
            )
        except QmpError:
            for name in names + vhost:
                with contextlib.suppress(QmpError):  # QEMU has taken some of them
                    await self._qmp.execute("closefd", fdname=name)
            raise
        undo.push_async_callback(self._qmp.execute, "netdev_del", id=f"net{slot}")

    async def _make_vhost_user(
        self, slot: int, backend: VhostUser, undo: contextlib.AsyncExitStack
    ) -> None:
        chardev = f"char{slot}"
        await self._open_socket(chardev, backend)
        try:
            if backend.listens:
                await self._connected(chardev)
            # This comes last, because QEMU stands still until the backend has answered.
            await self._qmp.execute(
                "netdev_add",
                type="vhost-user",
                id=f"net{slot}",
                chardev=chardev,
                queues=backend.queues,
            )
        except HypervisorError:
            await self._qmp.execute("chardev-remove", id=chardev)
            raise
        # The chardev goes with the netdev.
        undo.push_async_callback(self._qmp.execute, "netdev_del", id=f"net{slot}")

    async def _open_socket(self, chardev: str, backend: VhostUser) -> None:
        passed = await self._qmp.execute_with_fd(backend.fd, "add-fd")
        path = f"/proc/self/fd/{passed['fd']}/{backend.name}"
        address = {"type": "unix", "data": {"path": path}}
        data: dict[str, Any] = {"addr": address, "server": backend.listens}
        if backend.listens:
            data["wait"] = False
        try:
            await self._qmp.execute(
                "chardev-add", id=chardev, backend={"type": "socket", "data": data}
            )
        finally:
            await self._qmp.execute("remove-fd", fdset_id=passed["fdset-id"])
        try:
            backend.opened()
        except OSError as error:
            await self._qmp.execute("chardev-remove", id=chardev)
            raise HypervisorError(f"the vhost-user socket can't be put in place: {error}") from None

    async def _connected(self, chardev: str) -> None:
        deadline = time.monotonic() + BACKEND_SECONDS
        while time.monotonic() < deadline:
            for entry in await self._qmp.execute("query-chardev"):
                if entry["label"] == chardev and not entry["filename"].startswith("disconnected:"):
                    return
            await asyncio.sleep(_PAUSE)  # QEMU sends no event for it
        raise HypervisorError(
            f"no vhost-user backend has connected within {BACKEND_SECONDS:g} s; does its port lead "
            "to this socket (Open vSwitch: type dpdkvhostuserclient, options:vhost-server-path)?"
        )

    def _device_deleted(self, data: dict[str, Any]) -> None:
        device = str(data.get("device", ""))
        number = device.removeprefix("nic")
        if device != number and number.isdecimal() and int(number) in self._plugged:
            task = asyncio.create_task(self._release(int(number)))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    async def _release(self, slot: int) -> None:
        leaving = self._leaving.setdefault(slot, asyncio.get_running_loop().create_future())
        try:
            await self._qmp.execute("netdev_del", id=f"net{slot}")
            del self._plugged[slot]
            self.on_gone(slot)
        except (HypervisorError, OSError) as error:
            _log.error("slot %d is lost: %s", slot, error)
            leaving.set_exception(
                HypervisorError(
                    f"the guest released the NIC, but QEMU can't release its backend: {error}"
                )
            )
            leaving.exception()  # perhaps no task waits for it
        else:
            leaving.set_result(None)
        del self._leaving[slot]


@contextlib.contextmanager
def _vhost_fds(count: int) -> Iterator[list[int]]:
    """Yield a descriptor of the kernel's vhost-net for each queue; none if the host has no
    vhost-net."""
    fds: list[int] = []
    try:
        try:
            for _ in range(count):
                fds.append(os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            pass  # there is no module, or this process may not use it
        yield fds if len(fds) == count else []
    finally:
        for fd in fds:
            os.close(fd)

"""The network of a running sandbox as the guest's agent and QEMU see it.

A look changes nothing, and answers within a few seconds, even when the guest is dead or QEMU has
stopped; the answer says so. This module checks the types of the guest's answer, not its truth: the
guest may lie.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from tapwright import shapes
from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError, HypervisorError
from tapwright.hypervisor.qmp import Qmp, QmpError

SECONDS = 3.0
"""For all of it."""

_VIRTIO_NET = "virtio-net"
_MOST_QUEUES = 64

_COUNTERS = dict.fromkeys(
    (f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")),
    int,
)
_SHAPES: dict[str, dict[str, Any]] = {
    "interfaces": {
        **dict.fromkeys(("name", "mac", "kind"), str),
        **dict.fromkeys(("up", "carrier", "loopback"), bool),
        "mtu": int,
        "addresses": list[str],
        "counters": dict[str, int],
    },
    "routes": {"destination": str, "gateway": str, "device": str, "metric": int, "table": int},
    "neighbours": {"address": str, "mac": str, "device": str, "state": str},
}


class Looking:
    """`look` returns `guest` and `qemu`, each an object; it is empty where `guest_failure` or
    `qemu_failure` says why. The guest has `seconds` to answer."""

    def __init__(self, agent: AgentClient, qmp: Qmp) -> None:
        self._agent = agent
        self._qmp = qmp
        self._asking: dict[str, asyncio.Task[dict[str, Any]]] = {}

    def by_name(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        return {"look": self.look, "queues": self.queues}

    async def look(self, seconds: float = SECONDS) -> dict[str, Any]:
        guest, qemu = await asyncio.gather(self._guest(seconds), self._qemu())
        return {**guest, **qemu}

    async def queues(self) -> dict[str, Any]:
        """QEMU's filters of its NICs (`filters`: query-rx-filter), and the queues of each
        virtio-net device (`devices`, by its path) as x-query-virtio-queue-status returns them (QEMU
        7.2 or newer; empty for older ones). Not x-query-virtio-status: it ends QEMU 11.1. Raises
        HypervisorError, also when QEMU does not answer."""
        try:
            return await self._patiently("queues", self._queues)
        except TimeoutError:
            raise HypervisorError(f"QEMU has not answered within {SECONDS:g} s") from None

    async def _queues(self) -> dict[str, Any]:
        devices: dict[str, list[Any]] = {}
        found: dict[str, Any] = {"devices": devices}
        found["filters"] = await self._qmp.execute("query-rx-filter")
        try:
            listed = await self._qmp.execute("x-query-virtio")
        except QmpError as error:
            if error.kind != "CommandNotFound":
                raise
            listed = []
        for path in (entry["path"] for entry in listed if entry["name"] == _VIRTIO_NET):
            queues = devices[path] = []
            with contextlib.suppress(QmpError):  # there is no further one
                for number in range(_MOST_QUEUES):
                    queues.append(
                        await self._qmp.execute(
                            "x-query-virtio-queue-status", path=path, queue=number
                        )
                    )
        return found

    async def _guest(self, seconds: float) -> dict[str, Any]:
        try:
            said = await self._agent.call(requests.look(), seconds)
        except AgentError as error:
            return {"guest": {}, "guest_failure": str(error)}
        if mistake := _mistake(said):
            return {"guest": {}, "guest_failure": f"the agent's answer is invalid: {mistake}"}
        return {"guest": said, "guest_failure": ""}

    async def _qemu(self) -> dict[str, Any]:
        try:
            return {"qemu": await self._patiently("look", self._ask), "qemu_failure": ""}
        except TimeoutError:
            return {"qemu": {}, "qemu_failure": f"QEMU has not answered within {SECONDS:g} s"}
        except HypervisorError as error:
            return {"qemu": {}, "qemu_failure": str(error)}

    async def _patiently(
        self, question: str, ask: Callable[[], Coroutine[Any, Any, dict[str, Any]]]
    ) -> dict[str, Any]:
        """Ask QEMU once, and keep the request when this call gives up: QEMU answers each request
        in the end, so a second one would only wait behind it. Raises TimeoutError."""
        task = self._asking.get(question)
        if task is None or task.done():
            task = self._asking[question] = asyncio.create_task(ask())
            # Perhaps no task waits for it any more.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        async with asyncio.timeout(SECONDS):
            return await asyncio.shield(task)

    async def _ask(self) -> dict[str, Any]:
        status = await self._qmp.execute("query-status")
        filters = await self._qmp.execute("query-rx-filter")
        return {
            "status": status["status"],
            "nics": {entry["name"]: entry["main-mac"].lower() for entry in filters},
        }


def _mistake(said: dict[str, Any]) -> str:
    if found := shapes.mistake(said, {**dict.fromkeys(_SHAPES, list), "cut": list[str]}):
        return found
    for key, shape in _SHAPES.items():
        for entry in said[key]:
            if not isinstance(entry, dict):
                return f"{key} must be objects"
            if found := shapes.mistake(entry, shape):
                return f"{key}: {found}"
            if "counters" in shape and (found := shapes.mistake(entry["counters"], _COUNTERS)):
                return f"{key}: {found}"
    return ""

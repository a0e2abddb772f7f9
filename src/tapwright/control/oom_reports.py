"""Reports to a container's platform that the guest's kernel has killed a process of the container
for want of memory. Without a VM, the platform's monitor would see that in the container's control
group. So this module does what the monitor would do then:

- conmon (podman, CRI-O) makes a file `oom` (src/cgroup.c: create_oom_files), which the platform
  looks for when the container has ended;
- containerd's shim sends an event TaskOOM to the socket in TTRPC_ADDRESS
  (api/services/ttrpc/events), from which docker, the CRI and `ctr events` get it.
"""

import asyncio
import contextlib
import logging
import os
import struct
import time
from typing import Any

from tapwright import shapes
from tapwright.errors import UsageError

_log = logging.getLogger(__name__)

_SECONDS = 3.0
_PAUSE_SECONDS = 1.0  # between reports: a guest may cause any number of them
_SERVICE, _METHOD = "containerd.services.events.ttrpc.v1.Events", "Forward"
_TOPIC, _EVENT = "/tasks/oom", "containerd.events.TaskOOM"
_HEADER = struct.Struct("!IIBB")  # github.com/containerd/ttrpc, PROTOCOL.md
_REQUEST, _RESPONSE = 1, 2
_MOST_BYTES = 64 * 1024
_STREAM = 1


class OomReports:
    """The reports of one container. `wanted` may have `files` (paths to make) and `containerd`
    (`address`, `namespace`, `container`). Raises UsageError."""

    def __init__(self, wanted: Any) -> None:
        if not _is_proper(wanted):
            raise UsageError(f"oom is {wanted!r}, and must say `files` and `containerd`")
        self._files: list[str] = wanted.get("files", [])
        self._containerd: dict[str, str] | None = wanted.get("containerd")
        self._due = asyncio.Event()
        self._turn = asyncio.Lock()

    def killed(self) -> None:
        self._due.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._due.wait()
            await self._tell()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def settle(self) -> None:
        """Wait until all reports have been sent."""
        await self._tell()

    async def _tell(self) -> None:
        async with self._turn:
            if not self._due.is_set():
                return
            self._due.clear()
            for path in self._files:
                with contextlib.suppress(OSError):  # the bundle may have gone
                    flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                    os.close(os.open(path, flags, 0o644))
            if self._containerd:
                try:
                    async with asyncio.timeout(_SECONDS):
                        await _forward(**self._containerd)
                except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                    _log.warning("containerd can't get the report of a kill for memory: %r", error)


async def _forward(address: str, namespace: str, container: str) -> None:
    """Raises OSError, ValueError, IncompleteReadError."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    envelope = (
        _bytes(1, _number(1, seconds) + _number(2, nanoseconds))
        + _bytes(2, namespace.encode())
        + _bytes(3, _TOPIC.encode())
        + _bytes(4, _bytes(1, _EVENT.encode()) + _bytes(2, _bytes(1, container.encode())))
    )
    request = (
        _bytes(1, _SERVICE.encode())
        + _bytes(2, _METHOD.encode())
        + _bytes(3, _bytes(1, envelope))
        + _number(4, int(_SECONDS * 10**9))
    )
    reader, writer = await asyncio.open_unix_connection(address)
    try:
        writer.write(_HEADER.pack(len(request), _STREAM, _REQUEST, 0) + request)
        length, _, kind, _ = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if kind != _RESPONSE or length > _MOST_BYTES:
            raise ValueError(f"an answer of kind {kind}, with {length} bytes")
        # Field 1 is a status; after a success it is missing or empty.
        answer = await reader.readexactly(length)
        if answer.startswith(b"\x0a") and answer[1:2] != b"\0":
            raise ValueError(f"refused: {answer!r}")
    finally:
        writer.close()


def _bytes(field: int, content: bytes) -> bytes:
    """protobuf.dev, "Encoding"."""
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint(value)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _is_proper(wanted: Any) -> bool:
    if not isinstance(wanted, dict) or not wanted.keys() <= {"files", "containerd"}:
        return False
    files, containerd = wanted.get("files", []), wanted.get("containerd")
    return (
        shapes.fits(files, list[str])
        and shapes.fits(containerd, dict[str, str] | None)
        and (containerd is None or containerd.keys() == {"address", "namespace", "container"})
    )

"""QMP: commands to a running QEMU, and its events (docs/interop/qmp-spec in QEMU's sources).

The module exists because NICs are passed to QEMU as file descriptors, which the `qemu.qmp` package
can do only through a private attribute of asyncio's sockets.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from tapwright.agent.patience import Patience
from tapwright.errors import HypervisorError
from tapwright.hypervisor import qmp_wire
from tapwright.hypervisor.qmp_wire import Command
from tapwright.linux.starving import granted

_LINE_LIMIT = 16 * 1024 * 1024
_GREETING_SECONDS = 20.0
_EVENT_COST = 1024
"""What an event takes beside its bytes, in bytes. A guest can have QEMU send as many as it likes:
each write to a register of hot-plug, for one, is an ACPI_DEVICE_OST."""

_log = logging.getLogger(__name__)


class QmpError(HypervisorError):
    """QEMU refused a command. `kind` is its error class, such as DeviceNotFound."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.kind = kind


class Qmp:
    """One QMP connection over a connected socket, on which the `written` commands have been sent.
    Use it from one event loop."""

    def __init__(self, connection: socket.socket, written: Sequence[str] = ()) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._listeners: dict[str, list[Callable[[dict[str, Any]], None]]] = {}
        self._unasked = Patience(at_once=4 << 20, a_second=1 << 20)
        self.has_broken_rules = asyncio.Event()
        """Set when there are more events than any guest has cause for. What is not read, QEMU would
        keep in memory: it is to end."""
        self._sending = asyncio.Lock()
        loop = asyncio.get_running_loop()
        self._greeting = loop.create_future()
        self._written = dict(enumerate(written, 1))
        self._pending.update((ident, loop.create_future()) for ident in self._written)
        self._last_id = len(self._written)
        self._reader = asyncio.create_task(self._read())

    async def connect(self, process: int | None = None) -> None:
        """Wait for QEMU's greeting, and for its answers to what was written before it started. Time
        in which its `process` waits for a processor does not count (`linux.starving`).

        Raises QmpError, HypervisorError.
        """
        try:
            await granted(process, _GREETING_SECONDS, self._greeted())
        except TimeoutError:
            raise HypervisorError(f"QEMU did not greet within {_GREETING_SECONDS:g} s") from None

    async def _greeted(self) -> None:
        await self._greeting
        for ident, name in self._written.items():
            answer = self._pending[ident]
            _result(name, await answer)
            del self._pending[ident]

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer. Raises QmpError, HypervisorError.

        It waits as long as QEMU lives. QEMU does all commands in their order, however late, so a
        caller that gave up would not know the state of the machine.
        """
        return await self._execute(Command(command, arguments))

    async def execute_with_fd(self, fd: int, command: str, **arguments: Any) -> Any:
        """Run a command that needs a file descriptor (getfd, add-fd). The caller closes the
        descriptor."""
        return await self._execute(Command(command, arguments, fd))

    def on_event(self, name: str, listener: Callable[[dict[str, Any]], None]) -> None:
        """Call the listener with the data of each event of that name."""
        self._listeners.setdefault(name, []).append(listener)

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._socket.close()

    async def _execute(self, command: Command) -> Any:
        if self._reader.done():
            raise HypervisorError(f"QEMU is gone; {command.name} was not sent")
        self._last_id += 1
        ident = self._last_id
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._pending[ident] = answer
        try:
            async with self._sending:
                if command.fd is not None:
                    qmp_wire.send_fd(self._socket, command.fd)
                await loop.sock_sendall(self._socket, qmp_wire.line(command, ident))
            reply = await answer
        except OSError as error:
            raise HypervisorError(f"QEMU does not listen any more: {error}") from None
        finally:
            self._pending.pop(ident, None)
        return _result(command.name, reply)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        try:
            while data := await loop.sock_recv(self._socket, 64 * 1024):
                buffer += data
                *lines, buffer = buffer.split(b"\n")
                unasked = sum(
                    0 if self._take(json.loads(line)) else len(line) + _EVENT_COST for line in lines
                )
                if len(buffer) > _LINE_LIMIT:
                    break
                if self._unasked.spend(unasked):
                    _log.error("the guest has QEMU send events, on and on: it is ended")
                    self.has_broken_rules.set()
                    break
        except (OSError, ValueError, RecursionError):
            pass
        finally:
            gone = HypervisorError("QEMU has ended")
            for future in (self._greeting, *self._pending.values()):
                if not future.done():
                    future.set_exception(gone)
                    future.exception()  # perhaps no task waits for it

    def _take(self, message: dict[str, Any]) -> bool:
        """Take a message; return whether it was waited for."""
        if "event" in message:
            for listener in self._listeners.get(message["event"], ()):
                listener(message.get("data", {}))
        elif "QMP" in message:
            if not self._greeting.done():
                self._greeting.set_result(None)
                return True
        elif (answer := self._pending.get(message.get("id", 0))) and not answer.done():
            answer.set_result(message)
            return True
        return False


def _result(command: str, reply: dict[str, Any]) -> Any:
    if "error" in reply:
        refusal = reply["error"]
        reason = refusal.get("desc", "no reason given")
        raise QmpError(command, refusal.get("class", ""), reason)
    return reply["return"]

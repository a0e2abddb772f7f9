"""QMP commands on the wire (docs/interop/qmp-spec in QEMU's sources).

QEMU reads what was written before it started, in its order. So its first commands need no wait for
its greeting.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command, and optionally a file descriptor for it (getfd, add-fd), which the caller
    closes."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    fd: int | None = None


def line(command: Command, ident: int) -> bytes:
    arguments = command.arguments
    if command.name != "device_add":  # whose arguments are a device's properties, such as `ctrl_rx`
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
    content = {"execute": command.name, "arguments": arguments, "id": ident}
    return json.dumps(content).encode() + b"\n"


def send_fd(connection: socket.socket, fd: int) -> None:
    """Send a descriptor with one byte of white space, which QEMU skips between commands. Raises
    OSError."""
    socket.send_fds(connection, [b" "], [fd])


def write(connection: socket.socket, commands: Sequence[Command]) -> None:
    """Write commands to a QEMU that has not started, with the ids 1, 2, … Raises OSError."""
    for ident, command in enumerate(commands, 1):
        if command.fd is not None:
            send_fd(connection, command.fd)
        connection.sendall(line(command, ident))

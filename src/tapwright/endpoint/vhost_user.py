"""A vhost-user backend as endpoint: Open vSwitch with DPDK, testpmd, … moves the frames between
its own process and the guest's memory, over a unix socket that it shares with QEMU.

Who listens on the socket is found out: a backend that does is connected to; else QEMU will listen
(the backend is a client, such as Open vSwitch's port type dpdkvhostuserclient).
"""

import os
import socket

from tapwright.errors import NetworkError
from tapwright.hypervisor.nics import VhostUser


def attach(path: str, queues: int) -> VhostUser:
    """Connect to the backend, or listen for it. Raises NetworkError."""
    try:
        connection = _connect(path)
        if connection is not None:
            return VhostUser(connection.detach(), listening=False, queues=queues)
        detach(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(1)
            return VhostUser(listener.detach(), listening=True, queues=queues)
    except OSError as error:
        raise NetworkError(f"vhostUserSocket: {path} can't be used: {error.strerror}") from None


def detach(path: str) -> None:
    """Remove a socket that nobody listens on, such as the one that `attach` made; leave a
    backend's own alone. Raises OSError."""
    connection = _connect(path)
    if connection is not None:
        connection.close()
    elif os.path.lexists(path):
        os.unlink(path)


def _connect(path: str) -> socket.socket | None:
    """A connection to who listens; None when nobody does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection

"""The socket to which crun sends the terminal that it makes for a process (crun's
--console-socket)."""

import contextlib
import os
import socket


class Console:
    """Listens at `path`. `close` removes the socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(path)
        self._socket.listen()
        self._socket.setblocking(False)

    def terminal(self) -> int:
        """Return the master of the terminal. crun has sent it by the time that crun ends. Raises
        OSError, and ValueError when crun has sent none."""
        connection, _ = self._socket.accept()
        with connection:
            connection.setblocking(False)
            _, (master,), _, _ = socket.recv_fds(connection, 4096, 1)
        return master

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

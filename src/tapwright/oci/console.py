"""Terminals of containers: a new one, whose master goes to the platform, or the caller's own."""

import os
import socket
import struct
import termios
from fcntl import ioctl

from tapwright.errors import ContainerStateError
from tapwright.linux import unixsocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def opened_for(path: str, size: "dict[str, int] | None") -> int:
    """Make a pseudo-terminal and send its master over the socket at `path` (`--console-socket`);
    return the other end, in raw mode. `size` is the configuration's consoleSize.

    Raises ContainerStateError.
    """
    master, slave = os.openpty()
    try:
        if size:
            rows_columns = size.get("height", 0), size.get("width", 0)
            ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *rows_columns, 0, 0))
        make_raw(slave)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            with unixsocket.address(path) as address:
                connection.connect(address)
            # With the terminal's name, as runc does (libcontainer/utils, SendFile).
            socket.send_fds(connection, [os.ttyname(slave).encode()], [master])
    except OSError as error:
        os.close(slave)
        raise ContainerStateError(
            f"the console socket {path} can't be used: {error.strerror}"
        ) from None
    finally:
        os.close(master)
    return slave


def make_raw(fd: int) -> "list[Any]":
    """Make a terminal pass all bytes on unchanged, because the guest has a terminal of its own;
    return the old settings."""
    before = termios.tcgetattr(fd)
    mode = termios.tcgetattr(fd)
    mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
    mode[1] &= ~termios.OPOST
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, mode)
    return before


def restore(fd: int, mode: "list[Any]") -> None:
    termios.tcsetattr(fd, termios.TCSADRAIN, mode)

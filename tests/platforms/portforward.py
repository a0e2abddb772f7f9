"""A port of a pod, forwarded as for a kubelet's client: by a WebSocket (RFC 6455) to the CRI's
streaming server, with the channels of k8s.io/kubelet's pkg/cri/streaming/portforward/websocket.go.
"""

import base64
import os
import socket
import struct
from urllib.parse import urlsplit

_PROTOCOL = "v4.channel.k8s.io"
_DATA, _ERROR = 0, 1
_BINARY, _END = 2, 8
_MASK = bytes(4)  # which changes nothing, but a client must send one


class Forwarded:
    """One connection to a port, by the URL that the CRI has given for it."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname, place.port or 80), timeout=60)
        self._file = self._socket.makefile("rb")
        lines = (
            *(f"GET {place.path} HTTP/1.1", f"Host: {place.netloc}", "Connection: Upgrade"),
            *("Upgrade: websocket", "Sec-WebSocket-Version: 13"),
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *(f"Sec-WebSocket-Protocol: {_PROTOCOL}", f"Origin: http://{place.netloc}", "", ""),
        )
        self._socket.sendall("\r\n".join(lines).encode())
        status = self._file.readline().decode()
        if " 101 " not in status:
            raise ConnectionError(status.strip() + self._file.read(1000).decode())
        while self._file.readline().strip():
            pass
        self.errors = b""
        # Each channel begins with the number of the port.
        self._is_begun = {_DATA: False, _ERROR: False}

    def send(self, data: bytes) -> None:
        payload = bytes([_DATA]) + data
        header = struct.pack("!BBH", 0x80 | _BINARY, 0x80 | 126, len(payload))
        self._socket.sendall(header + _MASK + payload)

    def receive(self) -> bytes:
        """Some data; none when the connection has ended, and `errors` say how."""
        while True:
            kind, payload = self._frame()
            if kind == _END:
                return b""
            channel, data = payload[0], payload[1:]
            if not self._is_begun[channel]:
                self._is_begun[channel] = True
            elif channel == _ERROR:
                self.errors += data
            elif data:
                return data

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _frame(self) -> tuple[int, bytes]:
        header = self._file.read(2)
        if len(header) < 2:
            return _END, b""
        first, length = header
        if length == 126:
            (length,) = struct.unpack("!H", self._file.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._file.read(8))
        return first & 0xF, self._file.read(length)

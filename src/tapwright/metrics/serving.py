"""Answers Prometheus over HTTP: GET of /metrics, and nothing else."""

import http.server
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from tapwright.metrics import exposition
from tapwright.metrics.exposition import Family

MOST_CONNECTIONS = 16
_IDLE_SECONDS = 5.0


class BoundedServer(http.server.ThreadingHTTPServer):
    """Serves `MOST_CONNECTIONS` clients at once, and closes further connections."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, *arguments: Any) -> None:
        """Raises OSError."""
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        # Without HTTPServer's own method, which looks the host's name up.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the client went away, or was too slow
            super().handle_error(request, client_address)


class Server(BoundedServer):
    """Listens at an address; each scrape calls `collect`, one at a time."""

    def __init__(self, address: str, port: int, collect: Callable[[], list[Family]]) -> None:
        """Raises OSError."""
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.collect = collect
        self.collecting = threading.Lock()
        super().__init__((address, port), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = _IDLE_SECONDS
    server_version = "Tapwright"
    sys_version = ""

    def do_GET(self) -> None:  # the name that the base class calls
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, exposition.PLAIN, "There is nothing but /metrics.\n")
            return
        wants_new = "application/openmetrics-text" in self.headers.get("Accept", "")
        kind, write = (
            (exposition.OPENMETRICS, exposition.openmetrics)
            if wants_new
            else (exposition.PLAIN, exposition.plain)
        )
        try:
            with self.server.collecting:
                text = write(self.server.collect())
        except OSError as error:
            self._answer(500, exposition.PLAIN, f"The metrics can't be read: {error.strerror}\n")
            return
        self._answer(200, kind, text)

    def _answer(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *words: Any) -> None:  # noqa: A002  # as its base has it
        """Log nothing about scrapes."""

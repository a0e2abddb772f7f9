"""Serves a page that refreshes itself, on the loopback interface, as long as the command runs.

Only root may see the page. So its path can't be guessed: other users of the machine can't find the
page without the address. The header Host must be the server's own: a page of another site in the
user's browser can connect to the loopback interface, but only under that site's name.
"""

import functools
import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

from tapwright.diagnosis import page
from tapwright.diagnosis.way import Picture
from tapwright.errors import TapwrightError
from tapwright.metrics.serving import BoundedServer

ADDRESS = "127.0.0.1"
SECONDS = 10.0
"""The time that a client has for a request."""
_AT_LEAST = 1.0  # seconds from one look to the next, for any number of clients

Look = Callable[[], Sequence[Picture]]


class Live:
    """The server; `address` is the page's. `look` makes the pictures, one thread at a time."""

    def __init__(self, look: Look) -> None:
        """Raises OSError."""
        self._look = look
        self._token = secrets.token_urlsafe(24)
        self._lock = threading.Lock()
        self._seen: Sequence[Picture] = ()
        self._when = -_AT_LEAST
        self._server = BoundedServer((ADDRESS, 0), functools.partial(_Handler, self))
        self.host = f"{ADDRESS}:{self._server.server_address[1]}"

    @property
    def address(self) -> str:
        return f"http://{self.host}/{self._token}/"

    def serve(self) -> None:
        """Serve until `close`, or an interruption."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> str | None:
        """Return the content of a path; None if there is none."""
        token, _, rest = path.lstrip("/").partition("/")
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        if rest == "":
            return page.page(self._pictures(), live="fragment")
        return page.fragment(self._pictures()) if rest == "fragment" else None

    def _pictures(self) -> Sequence[Picture]:
        with self._lock:
            if time.monotonic() - self._when >= _AT_LEAST:
                self._seen = self._look()
                self._when = time.monotonic()
            return self._seen


class _Handler(BaseHTTPRequestHandler):
    timeout = SECONDS
    server_version, sys_version = "tapwright", ""

    def __init__(self, live: Live, *arguments: Any) -> None:
        self._live = live
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.headers.get("Host") != self._live.host:
            self._send(403, "this server answers to its own name alone\n", "text/plain")
            return
        try:
            text = self._live.answer(self.path)
        except (TapwrightError, OSError) as error:
            self._send(503, f"{error}\n", "text/plain")
            return
        if text is None:
            self._send(404, "there is nothing here\n", "text/plain")
        else:
            self._send(200, text, "text/html")

    def _send(self, status: int, text: str, kind: str) -> None:
        data = text.encode(errors="replace")
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(data))),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def setup(self) -> None:
        super().setup()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # its name there
        """Log nothing: nobody would read it."""

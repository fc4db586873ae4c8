"""What stands between a program and a server that it speaks HTTP with, and goes wrong."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

RESET: Final = object()
"""A fault: the connection is reset."""

Faults = Callable[[str, str], Any]
"""Takes method and path, of a form with its fields as the path's query; returns what goes wrong.
None: it is passed on; a number: after so many seconds; `RESET`; (status, code): an error of S3, or
of a service that takes forms; (status, bytes): that answer."""

_NOT_PASSED_ON: Final = {"connection", "transfer-encoding", "content-length", "date", "server"}
_BEYOND_S: Final = 60.0


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to a server, but for those that `faults` says.

    Attributes:
        faults: what becomes of a request; may be set at any time.
        requests: method and path of each, as `faults` has them.
        endpoint: its own URL.

    Args:
        server: URL of the server beyond.
    """

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.beyond = server.removeprefix("http://")
        self.faults: Faults = lambda *_: None
        self.requests: list[tuple[str, str]] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Say nothing: the client has gone."""

    def close(self) -> None:
        """Serve no longer."""
        self.shutdown()
        self.server_close()


class _Passing(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_form = self.headers.get_content_type() == "application/x-www-form-urlencoded"
        path = f"{self.path}?{body.decode()}" if is_form else self.path
        self.server.requests.append((self.command, path))
        fault = self.server.faults(self.command, path)
        if fault is RESET:
            # Linger 0: the other side sees a reset, not an end.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
        elif isinstance(fault, tuple):
            status, told = fault
            content = told if isinstance(told, bytes) else _error(told, is_form=is_form)
            self._answer(status, [("Content-Type", "application/xml")], content)
        else:
            time.sleep(fault or 0)
            self._pass_on(body)

    def _pass_on(self, body: bytes) -> None:
        server = http.client.HTTPConnection(self.server.beyond, timeout=_BEYOND_S)
        server.request(self.command, self.path, body, dict(self.headers.items()))
        got = server.getresponse()
        content = got.read()
        kept = [(k, v) for k, v in got.getheaders() if k.lower() not in _NOT_PASSED_ON]
        length = got.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(got.status, kept, content, length)
        server.close()

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        length: str | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    def log_message(self, *_: object) -> None:
        pass


def _error(code: str, *, is_form: bool) -> bytes:
    told = f"<Error><Code>{code}</Code><Message>{code} was injected</Message></Error>"
    return (f"<ErrorResponse>{told}</ErrorResponse>" if is_form else told).encode()

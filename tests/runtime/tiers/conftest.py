"""A real S3 server, and what stands between it and us and goes wrong."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.object_tier import ObjectTier
from castor_runtime.persistent.tier import Tier

NOWHERE = object()
"""An answer: the connection is reset."""

Faults = Callable[[str, str], Any]
"""Takes method and path; None: it is passed on; (status, code): S3's error; a number: seconds."""


class Between(ThreadingHTTPServer):
    """Passes requests on to a server, but for those that `faults` says."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.beyond = (host, port)
        self.faults: Faults = lambda *_: None
        self.reset = NOWHERE
        self.requests: list[tuple[str, str]] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, prefix: str) -> str:
        return f"s3://bucket/{prefix}?endpoint_url={self.endpoint}"

    def handle_error(self, *_: object) -> None:
        pass  # the client has gone

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Passing(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Between

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path))
        fault = self.server.faults(self.command, self.path)
        if fault is NOWHERE:
            # Linger 0: the other side sees a reset, not an end.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
        elif isinstance(fault, tuple):
            status, code = fault
            told = f"<Error><Code>{code}</Code><Message>{code} was injected</Message></Error>"
            self.answer(status, [("Content-Type", "application/xml")], told.encode())
        else:
            time.sleep(fault or 0)
            self.pass_on(body)

    def pass_on(self, body: bytes) -> None:
        server = http.client.HTTPConnection(*self.server.beyond, timeout=60)
        server.request(self.command, self.path, body, dict(self.headers.items()))
        got = server.getresponse()
        content = got.read()
        hop = {"connection", "transfer-encoding", "content-length", "date", "server"}
        kept = [(k, v) for k, v in got.getheaders() if k.lower() not in hop]
        length = got.getheader("Content-Length") if self.command == "HEAD" else None
        self.answer(got.status, kept, content, length)
        server.close()

    def answer(
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


@pytest.fixture
def between(s3: str) -> Iterator[Between]:
    host, _, port = s3.removeprefix("http://").partition(":")
    between = Between(host, int(port))
    yield between
    between.close()


@pytest.fixture(params=["local", "s3", "other"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Tier:
    """A tier of each kind: a folder, a bucket, and fsspec's local files for its other stores."""
    if request.param == "local":
        return LocalTier(tmp_path / "tier")
    if request.param == "other":
        return ObjectTier(f"file://{tmp_path}/tier", "file", {})
    endpoint = request.getfixturevalue("s3")
    return tier_at(f"s3://bucket/{tmp_path.name}?endpoint_url={endpoint}")

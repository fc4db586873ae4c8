"""Serves an agent's metrics and health over HTTP, from a thread of its own.

Nothing here waits for the agent, and nothing in the agent waits for this: it reads counts under a
lock that is held for an addition, and the newest reading. There is no password: what it tells are
names, addresses and counts; let a firewall decide who may ask.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Check: TypeAlias = Callable[[], str]
"""Returns what is wrong; "" if nothing is."""

Where: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]
"""Family and address of what to bind, as `getaddrinfo` tells them."""

_SILENCE_S = 5.0


class MetricsServer:
    """Answers /metrics, /healthz and /readyz until it is closed.

    Args:
        where: what to bind.
        registry: what is scraped.
        unwell: why the agent should be started again.
        not_ready: why the job should not count on this machine.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self, where: Where, registry: CollectorRegistry, unwell: Check, not_ready: Check
    ) -> None:
        family, address = where

        class _Server(ThreadingHTTPServer):
            address_family = family
            daemon_threads = True
            block_on_close = False

            def server_bind(self) -> None:
                # Not HTTPServer's, which asks a name server for this host's name.
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(self.server_address)
                self.server_address = self.socket.getsockname()

            def handle_error(self, *_: object) -> None:
                """Say nothing: whoever asked has gone."""

        class _Asked(_Answer):
            pass

        _Asked.registry, _Asked.checks = registry, {"/healthz": unwell, "/readyz": not_ready}
        self._server = _Server((str(address[0]), int(address[1])), _Asked)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="castor-metrics", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Answer(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    checks: dict[str, Check]
    timeout = _SILENCE_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._send(HTTPStatus.OK, kind, encode(self.registry))
        elif (check := self.checks.get(path)) is not None:
            wrong = check()
            status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
            self._send(status, "text/plain; charset=utf-8", f"{wrong or 'ok'}\n".encode())
        else:
            known = ", ".join(("/metrics", *self.checks))
            text = f"there is no {path} here, but {known}\n"
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", text.encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a scrape every few seconds is no news."""

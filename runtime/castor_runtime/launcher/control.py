"""The launcher's ear: `castor kill` in another terminal asks over a Unix socket in the run folder.

One JSON object a line each way: {"op": "inject", "fault": "machine:2@10", "signal": ""} is answered
once the fault was carried out, with {"ok": true, "struck": [...]} or {"ok": false, "reason": ...}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a name of `path` that fits a socket's address (107 bytes), however deep it lies."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


class ControlServer:
    """Answers requests with `handler`, one connection a request."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen; only this user can connect."""
        listener = socket.socket(socket.AF_UNIX)
        with _short(self._path) as name:
            old = os.umask(0o177)
            try:
                listener.bind(name)
            finally:
                os.umask(old)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    async def close(self) -> None:
        """Stop listening and remove the socket; requests under way are told that the run ended."""
        if self._server is not None:
            self._server.close()
            for task in sorted(self._serving, key=id):
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio serves each connection in a task"
        self._serving.add(task)
        try:
            answer = await self._handler(json.loads(await reader.readline()))
        except asyncio.CancelledError:
            answer = {"ok": False, "reason": "the run ended first"}
        except ValueError as error:
            answer = {"ok": False, "reason": str(error)}
        finally:
            self._serving.discard(task)
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Send a request to the launcher and wait for its answer; None if no launcher listens."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            with _short(path) as name:
                link.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        link.sendall(json.dumps(request).encode() + b"\n")
        with link.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        return {"ok": False, "reason": "the launcher went away"}
    answer: dict[str, Any] = json.loads(line)
    return answer

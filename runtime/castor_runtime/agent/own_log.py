"""agent.log: what an agent says, kept beside its other logs however it was started.

A launcher sends an agent's output there by itself; started by `castor run` or `castor agent`, an
agent says it on its terminal, or to systemd, and here as well, so that `castor logs` has it.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TextIO


class _Kept(io.TextIOBase):
    """Writes to a stream, and to the end of a file, opened each time: logrotate may move it."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream = stream
        self._path = path

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        try:
            with self._path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError:
            pass  # a full disk must not silence the agent
        return written

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def keep_stderr(folder: Path) -> None:
    """Have what this process says on its standard error kept in the agent's folder, too."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "agent.log"
    if not _is(sys.stderr, path):
        sys.stderr = _Kept(sys.stderr, path)


def _is(stream: TextIO, path: Path) -> bool:
    try:
        found, own = path.stat(), os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)

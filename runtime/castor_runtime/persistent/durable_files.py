"""Files that are whole or absent after a crash, with their digest taken while they are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from xxhash import xxh3_128

from castor_runtime.pacing import Pacer

WRITE_BYTES = 4 << 20
"""Most bytes handed to the kernel at once: the grain of pacing, small beside the page cache."""

UNFINISHED_SUFFIX = ".unfinished"
"""Ends the name of a file that is still being written, or whose writer died."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was written.

    Attributes:
        name: in the checkpoint's folder.
        size_bytes: its size.
        xxh3_128: digest of its content, 32 hexadecimal digits.
    """

    name: str
    size_bytes: int
    xxh3_128: str

    def __post_init__(self) -> None:
        # A name comes back from a manifest on shared storage: it must not lead out of the folder.
        if not self.name or "/" in self.name or self.name in {".", ".."}:
            raise ValueError(f"a file's name must be a plain name, got {self.name!r}")

    @property
    def content(self) -> tuple[int, str]:
        """Size in bytes and digest, as `file_digest` returns them."""
        return self.size_bytes, self.xxh3_128


class DigestedFile:
    """What `torch.save` writes to: passes data on in paced pieces and digests it on its way.

    Args:
        write_all: takes a piece, the whole of it.
        pacer: holds the pieces to a bandwidth.
    """

    def __init__(self, write_all: Callable[[memoryview], object], pacer: Pacer) -> None:
        self._write_all = write_all
        self._pacer = pacer
        self._digest = xxh3_128()
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`; return its size in bytes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), WRITE_BYTES):
            piece = view[start : start + WRITE_BYTES]
            self._digest.update(piece)
            self._pacer.pace(len(piece))
            self._write_all(piece)
        self.size_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: `write` hands everything on. `torch.save` asks for it."""

    def record(self, name: str) -> FileRecord:
        """Return what has been written so far as a file of this name."""
        return FileRecord(name, self.size_bytes, self._digest.hexdigest())


@contextmanager
def writing(path: Path, pacer: Pacer | None = None) -> Iterator[DigestedFile]:
    """Yield a file beside `path`, which is synced and renamed to `path` when the block ends.

    On an error nothing is left behind. The name beside begins with a dot, so that the patterns by
    which DeepSpeed finds its files never match it.
    """
    # Not the process id: machines share the folder, and each has its own count of processes.
    beside = path.with_name(f".{path.name}.{uuid4().hex}{UNFINISHED_SUFFIX}")
    try:
        with beside.open("wb", buffering=0) as raw:
            file = DigestedFile(partial(_write_all, raw.fileno()), pacer or Pacer())
            yield file
            os.fsync(raw.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _write_all(handle: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(handle, piece) :]


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file, whole or not at all, and on the disk when this returns."""
    with writing(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Put a folder's entries (what was made, renamed or removed in it) on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path, pacer: Pacer | None = None) -> tuple[int, str]:
    """Return a file's size in bytes and its xxh3_128 digest."""
    pacer = pacer or Pacer()
    digest = xxh3_128()
    size_bytes = 0
    buffer = memoryview(bytearray(WRITE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size_bytes += count
            pacer.pace(count)
    return size_bytes, digest.hexdigest()

"""Files in /dev/shm: made, opened, mapped and faulted in.

Opened and mapped directly: `multiprocessing.shared_memory` has a resource tracker that removes
segments when the process that made them dies, which is when they are needed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from castor_configs.errors import InputError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - it is the very place, not a temporary file
PREFIX = "castor-"

_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module has no name for it
_MADV_HUGEPAGE = 14
_TOUCH_BYTES = 32 << 20
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EFAULT)


def segment_name(job: str, run: str, agent: str, rank: int) -> str:
    """Return the name of the segment in which `agent` holds the part of `rank`.

    Two runs of a job never meet in one name: what one finds there is its own.
    """
    return f"{PREFIX}{job}-{run}-{agent}-r{rank}"


def control_name(job: str, run: str, agent: str) -> str:
    """Return the name of the control segment between `agent` and its trainers."""
    return f"{PREFIX}{job}-{run}-{agent}-control"


def create_file(path: Path, size_bytes: int) -> mmap.mmap:
    """Make a segment of zeros, readable by its owner only, in place of one of the same name.

    Takes address space, not yet memory.

    Raises:
        OSError: it cannot be made.
    """
    path.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
        return mmap.mmap(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def open_file(path: Path, size_bytes: int = 0) -> mmap.mmap:
    """Map an existing segment to read and write.

    Args:
        path: of the segment.
        size_bytes: how much of it; 0: all.

    Raises:
        OSError: it is not there, not ours, or a link.
        ValueError: it is empty, or shorter than that.
    """
    descriptor = open_descriptor(path)
    try:
        return mmap.mmap(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def open_descriptor(path: Path) -> int:
    """Open an existing segment to read and write.

    Raises:
        OSError: it is not there, not ours, or a link.
    """
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Write all of `content` at an offset in bytes.

    Raises:
        OSError: there is no room.
    """
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def grow_file(descriptor: int, start: int, size_bytes: int) -> None:
    """Take memory for bytes [start, start + size_bytes) of a segment that has none there yet.

    Raises:
        OSError: there is not so much.
    """
    os.posix_fallocate(descriptor, start, size_bytes)


def read_start(path: Path, size_bytes: int) -> bytes:
    """Return the first bytes of a segment without mapping it.

    Raises:
        OSError: it is not there, not ours, or a link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size_bytes, 0)
    finally:
        os.close(descriptor)


def fault_in(maps: list[tuple[Path, mmap.mmap]], *, threads: int = 2) -> None:
    """Take the memory of `maps` now: the first touch of a page costs up to seconds a GiB.

    Contents stay as they are, so it may run while others write. Python's lock is not held.

    Raises:
        InputError: the memory, or the room in the folder, ran out.
        ValueError: `threads` is less than 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    total_bytes = sum(len(mapped) for _, mapped in maps)
    done_bytes = 0
    lock = threading.Lock()

    def touch(piece: tuple[Path, mmap.mmap, int, int]) -> None:
        nonlocal done_bytes
        path, mapped, start, end = piece
        try:
            _populate(path, mapped, start, end)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise InputError(
                f"memory for checkpoints ran out after {done_bytes / 2**30:.2f} of "
                f"{total_bytes / 2**30:.2f} GiB ({os.strerror(error.errno)}); free memory or room "
                f"in {path.parent}, or hold fewer replicas",
                file=path,
            ) from error
        with lock:
            done_bytes += end - start

    pieces = [
        (path, mapped, start, min(start + _TOUCH_BYTES, len(mapped)))
        for path, mapped in maps
        for start in range(0, len(mapped), _TOUCH_BYTES)
    ]
    with ThreadPoolExecutor(threads, thread_name_prefix="castor-touch") as pool:
        for _ in pool.map(touch, pieces):
            pass


def _populate(path: Path, mapped: mmap.mmap, start: int, end: int) -> None:
    # mmap.madvise holds Python's lock while it runs, and would stop an agent's heartbeats.
    anchor = ctypes.c_char.from_buffer(mapped)
    address = ctypes.addressof(anchor) + start
    # Where the file system may (huge=advise), pages are of 2 MiB; elsewhere it changes nothing.
    _LIBC.madvise(address, end - start, _MADV_HUGEPAGE)
    # Not POPULATE_WRITE: it takes pages one by one, 2.5 times as long where they are there already
    # (0.37 in place of 0.15 s a GiB). Shared memory that was read may be written to at once.
    while _LIBC.madvise(address, end - start, _MADV_POPULATE_READ) != 0:
        number = ctypes.get_errno()
        if number == errno.EINVAL:
            # An older kernel: take the pages from the file system; to map them is the cheap part.
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.posix_fallocate(descriptor, start, end - start)
            finally:
                os.close(descriptor)
            return
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, os.strerror(number))


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_LIBC.madvise.restype = ctypes.c_int

"""Memory that processes really take: what is their own, and what all share once.

Shared memory is the whole machine's, less what it was before: summed by process while somebody maps
a segment, whose pages then count half for each, the halves are of different moments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from castor_runtime.processes import memory_fields


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes at one instant.

    Attributes:
        processes_bytes: of all processes but those of a standby machine, without shared memory.
        shared_bytes: shared memory and files in memory, mapped or not, but the standby's.
        standby_bytes: of a standby machine, which no peer has.
    """

    processes_bytes: int
    shared_bytes: int
    standby_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it, without the standby's."""
        return self.processes_bytes + self.shared_bytes


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        process = psutil.Process(root)
        return [root, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def shared_bytes() -> int:
    """Return what shared memory and files in memory take on this machine."""
    return int(psutil.virtual_memory().shared)


def usage(root: int, shared_before: int, standby: int | None = None) -> Usage:
    """Measure a process, its descendants, and the shared memory since it was `shared_before`."""
    spare = [] if standby is None else tree(standby)
    own = sum(_pss_bytes(pid)[0] for pid in tree(root) if pid not in spare)
    spares = [_pss_bytes(pid) for pid in spare]
    spare_shared = sum(shared for _, shared in spares)  # mapped by nobody else
    return Usage(
        own,
        shared_bytes() - shared_before - spare_shared,
        sum(private for private, _ in spares) + spare_shared,
    )


def _pss_bytes(pid: int) -> tuple[int, int]:
    """Return a process's part of what it maps: without shared memory, and of that."""
    try:
        fields = memory_fields(Path(f"/proc/{pid}/smaps_rollup"))
    except OSError:
        return 0, 0
    shared = fields.get("Pss_Shmem", 0)
    return fields.get("Pss", 0) - shared, shared


class Sampler:
    """Measures twice a second in a thread until stopped; keeps the peak and the last.

    Reading a large process's page table disturbs it: sample only iterations that are not timed.
    """

    def __init__(
        self,
        root: int,
        shared_before: int,
        until: Callable[[], bool],
        standby: Callable[[], int | None],
    ) -> None:
        self.peak_bytes = 0
        self.last_bytes = 0
        self.standby_bytes = 0
        self._root, self._shared_before = root, shared_before
        self._until, self._standby = until, standby
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5) and not self._until():
            now = usage(self._root, self._shared_before, self._standby())
            self.last_bytes, self.standby_bytes = now.total_bytes, now.standby_bytes
            self.peak_bytes = max(self.peak_bytes, self.last_bytes)

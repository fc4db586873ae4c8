"""Memory that processes really take: proportional set size, so that shared pages count once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes at one instant.

    Attributes:
        processes_bytes: of all processes but those of a standby machine.
        files_bytes: files in memory that no process maps.
        standby_bytes: of a standby machine, which no peer has.
    """

    processes_bytes: int
    files_bytes: int
    standby_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it, without the standby's."""
        return self.processes_bytes + self.files_bytes


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        process = psutil.Process(root)
        return [root, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def usage(root: int, tier: Path, standby: int | None = None) -> Usage:
    """Measure a process, its descendants, and the files under `tier`."""
    spare = set() if standby is None else set(tree(standby))
    return Usage(
        sum(_pss_bytes(pid) for pid in tree(root) if pid not in spare),
        sum(path.stat().st_blocks * 512 for path in tier.rglob("*") if path.is_file()),
        sum(_pss_bytes(pid) for pid in spare),
    )


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class Sampler:
    """Measures twice a second in a thread until stopped; keeps the peak and the last.

    Reading a large process's page table disturbs it: sample only iterations that are not timed.
    """

    def __init__(
        self,
        root: int,
        tier: Path,
        until: Callable[[], bool],
        standby: Callable[[], int | None],
    ) -> None:
        self.peak_bytes = 0
        self.last_bytes = 0
        self.standby_bytes = 0
        self._root, self._tier, self._until, self._standby = root, tier, until, standby
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5) and not self._until():
            with contextlib.suppress(FileNotFoundError):  # a file went between listing and size
                now = usage(self._root, self._tier, self._standby())
                self.last_bytes, self.standby_bytes = now.total_bytes, now.standby_bytes
                self.peak_bytes = max(self.peak_bytes, self.last_bytes)

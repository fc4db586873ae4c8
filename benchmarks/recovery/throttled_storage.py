"""Storage as slow beside the network as the paper's: a token bucket around real copies in memory.

DeepSpeed writes its files into a folder in memory (`staging`), and from there they go, at the rate
of one node's share, into another (`storage`) that stands for the shared file system; reading goes
the same way back. Only the rate is emulated: files, bytes and copies are real.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class ThrottledStorage:
    """One node's view of the storage.

    Attributes:
        folder: where it lies.
        bytes_per_s: this node's share, of reading and of writing.
    """

    folder: Path
    bytes_per_s: float

    def write(self, files: Iterable[Path], tag: str) -> int:
        """Bring files into checkpoint `tag`; return how many bytes they have."""
        target = self.folder / tag
        target.mkdir(parents=True, exist_ok=True)
        return self._copy([(file, target / file.name) for file in sorted(files)])

    def read(self, tag: str, names: Iterable[str], target: Path) -> int:
        """Bring files of checkpoint `tag` into the folder `target`; return their bytes."""
        target.mkdir(parents=True, exist_ok=True)
        return self._copy([(self.folder / tag / name, target / name) for name in sorted(names)])

    def mark_whole(self, tag: str, rank: int) -> None:
        """Say that all files of this rank are there."""
        (self.folder / tag / f"whole-{rank}").touch()

    def newest_whole(self, world: int) -> str | None:
        """Return the newest checkpoint that all ranks have marked."""
        whole = [
            path.name
            for path in self.folder.glob("iteration-*")
            if all((path / f"whole-{rank}").exists() for rank in range(world))
        ]
        return max(whole, key=iteration_of, default=None)

    def _copy(self, pairs: Iterable[tuple[Path, Path]]) -> int:
        began, done = time.monotonic(), 0
        for source, target in pairs:
            with source.open("rb") as reading, target.open("wb") as writing:
                while block := reading.read(BLOCK_BYTES):
                    writing.write(block)
                    done += len(block)
                    ahead_s = done / self.bytes_per_s - (time.monotonic() - began)
                    if ahead_s > 0:
                        time.sleep(ahead_s)
        return done


def tag_of(iteration: int) -> str:
    """Name a checkpoint."""
    return f"iteration-{iteration}"


def iteration_of(tag: str) -> int:
    """Return the iteration that a checkpoint's name says."""
    return int(tag.rpartition("-")[2])

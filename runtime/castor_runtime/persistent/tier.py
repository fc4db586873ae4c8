"""A persistent tier: what writers, readers and the retention of checkpoints need of a place.

A tier holds files below folders; all names are relative to its URL, with slashes. Two kinds there
are: `LocalTier`, a folder of a file system that all machines share, and `ObjectTier`, a prefix of a
bucket. What a checkpoint is and when one counts is told in `storage`, once for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from castor_runtime.pacing import Pacer
from castor_runtime.persistent.durable_files import DigestedFile, FileRecord


class TierError(OSError):
    """A tier could not be reached, or refused; says which one, why, and what to do.

    Attributes:
        for_good: trying again is of no use before somebody changes something.
    """

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


class FilesDamagedError(Exception):
    """Files are not what was written.

    Attributes:
        names: of the files.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"not as they were written: {', '.join(names)}")
        self.names = tuple(names)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a tier.

    Attributes:
        size_bytes: its size.
        written_s: when it was written, in seconds since 1970; 0: the tier does not say.
    """

    size_bytes: int
    written_s: float


class Tier(Protocol):
    """Where persistent checkpoints lie.

    Each call may hang or raise OSError; a `TierError` says what to do. What is written is there
    for every machine when the call returns, whole or not at all.

    Attributes:
        url: for people; the folder's path where it is local.
        attempts: the folder of what machines write before it counts.
    """

    url: str
    attempts: str

    def probe(self) -> None:
        """See whether files can be written here and removed again; leaves nothing behind.

        Raises:
            TierError: they cannot, or the tier is away.
        """
        ...

    def at(self, name: str) -> str:
        """Return what people call a file or folder of it: an absolute path or a URL."""
        ...

    def read(self, name: str) -> bytes:
        """Return a small file's content.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def write(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Write a small file, in place of any that is there."""
        ...

    def writing(
        self, name: str, pacer: Pacer | None = None
    ) -> AbstractContextManager[DigestedFile]:
        """Yield a file that is there once the block ends; after an error nothing is."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def files(self, folder: str) -> dict[str, StoredFile]:
        """Return the files in a folder by their names; none of a folder that is not there."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        ...

    def digest(self, name: str, pacer: Pacer | None = None) -> tuple[int, str]:
        """Read a file; return its size in bytes and its xxh3_128 digest."""
        ...

    def whole(
        self, folder: str, files: Sequence[FileRecord], called: str, pacer: Pacer | None = None
    ) -> AbstractContextManager[Path]:
        """Yield a folder of this machine's file system that holds these files, read and compared.

        Args:
            folder: where they lie.
            files: which, and what was written.
            called: the name of the folder that is yielded.
            pacer: holds the reading to a bandwidth.

        Raises:
            FilesDamagedError: some are not what was written; names them all.
        """
        ...

    # ---- attempts and checkpoints --------------------------------------------------------------

    def begin(self, attempt: str) -> None:
        """Make the folder of an attempt, if it is not there."""
        ...

    def is_there(self, folder: str) -> bool:
        """Whether an attempt was begun and not removed since, or a checkpoint's name is taken."""
        ...

    def files_of(self, checkpoint: str, attempt: str) -> str:
        """Return where the files lie of the attempt that became this checkpoint."""
        ...

    def publish(self, attempt: str, checkpoint: str, name: str, manifest: bytes) -> None:
        """Make an attempt a checkpoint, in one step that nobody sees half of.

        Args:
            attempt: the folder of its files.
            checkpoint: the folder's name from then on.
            name: of the manifest in it.
            manifest: its content.

        Raises:
            FileExistsError: the name is taken.
            FileNotFoundError: the attempt is gone.
        """
        ...

    def set_aside(self, checkpoint: str, aside: str, name: str) -> bool:
        """Give a checkpoint's folder, whose manifest has this name, another name; its files stay.

        Returns:
            Whether it was; not if it is gone, or the new name is taken.
        """
        ...

    def remove(self, folder: str) -> bool:
        """Remove an attempt, or a checkpoint, out of sight at once; say whether it was there."""
        ...

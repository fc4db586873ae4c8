"""A persistent tier that is a folder: what counts is renamed, and everything is synced."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from castor_runtime.pacing import Pacer
from castor_runtime.persistent.durable_files import (
    UNFINISHED_SUFFIX,
    DigestedFile,
    FileRecord,
    file_digest,
    sync_folder,
    write_durably,
    writing,
)
from castor_runtime.persistent.tier import FilesDamagedError, StoredFile, TierError

_REMOVING = ".castor/removing"


class LocalTier:
    """A folder that all machines share.

    Args:
        folder: its path.
    """

    attempts = ".castor/writing"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    def probe(self) -> None:
        """See `Tier`; a folder that is not there yet is not made."""
        own = self.folder.absolute()
        there = next(above for above in (own, *own.parents) if above.exists())
        if not there.is_dir():
            raise TierError(f"{self.url} can be no folder: {there} is a file", for_good=True)
        if not os.access(there, os.W_OK | os.X_OK):
            raise TierError(
                f"{self.url} cannot be written to: {there} lets this user not, or is mounted "
                "read-only: change that, or name another folder",
                for_good=True,
            )

    def at(self, name: str) -> str:
        """See `Tier`."""
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        """See `Tier`."""
        try:
            return (self.folder / name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from error

    def write(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """See `Tier`."""
        path = self.folder / name
        write_durably(path, content)
        if executable:
            path.chmod(path.stat().st_mode | 0o111)

    def writing(
        self, name: str, pacer: Pacer | None = None
    ) -> AbstractContextManager[DigestedFile]:
        """See `Tier`."""
        return writing(self.folder / name, pacer)

    def delete(self, name: str) -> None:
        """See `Tier`."""
        (self.folder / name).unlink(missing_ok=True)

    def files(self, folder: str) -> dict[str, StoredFile]:
        """See `Tier`."""
        found = {}
        for entry in self._entries(folder):
            with contextlib.suppress(FileNotFoundError):  # removed while it was looked at
                if entry.is_file():
                    about = entry.stat()
                    found[entry.name] = StoredFile(about.st_size, about.st_mtime)
        return found

    def folders(self, folder: str) -> list[str]:
        """See `Tier`."""
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder / folder) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def digest(self, name: str, pacer: Pacer | None = None) -> tuple[int, str]:
        """See `Tier`."""
        return file_digest(self.folder / name, pacer)

    @contextmanager
    def whole(
        self,
        folder: str,
        files: Sequence[FileRecord],
        called: str,  # noqa: ARG002 - it is called so
        pacer: Pacer | None = None,
    ) -> Iterator[Path]:
        """See `Tier`: the folder itself, once its files have been read."""
        bad = [record.name for record in files if not self._is_as_written(folder, record, pacer)]
        if bad:
            raise FilesDamagedError(bad)
        yield self.folder / folder

    def _is_as_written(self, folder: str, record: FileRecord, pacer: Pacer | None) -> bool:
        try:
            return self.digest(f"{folder}/{record.name}", pacer) == record.content
        except OSError:
            return False

    # ---- attempts and checkpoints --------------------------------------------------------------

    def begin(self, attempt: str) -> None:
        """See `Tier`."""
        (self.folder / attempt).mkdir(parents=True, exist_ok=True)

    def is_there(self, folder: str) -> bool:
        """See `Tier`."""
        return (self.folder / folder).exists()

    def files_of(self, checkpoint: str, attempt: str) -> str:  # noqa: ARG002 - it was renamed
        """See `Tier`."""
        return checkpoint

    def publish(self, attempt: str, checkpoint: str, name: str, manifest: bytes) -> None:
        """See `Tier`."""
        write_durably(self.folder / attempt / name, manifest)
        target = self.folder / checkpoint
        if not self._rename(self.folder / attempt, target):
            raise FileExistsError(errno.EEXIST, "there is one already", str(target))
        # All ranks have their receipts, so these are of writers that died.
        for stale in target.glob(f".*{UNFINISHED_SUFFIX}"):
            stale.unlink(missing_ok=True)

    def set_aside(self, checkpoint: str, aside: str, name: str) -> bool:  # noqa: ARG002 - the folder
        """See `Tier`."""
        try:
            return self._rename(self.folder / checkpoint, self.folder / aside)
        except FileNotFoundError:
            return False

    def _rename(self, path: Path, target: Path) -> bool:
        """Rename a folder, which is one step for the file system; False if the name is taken."""
        try:
            path.rename(target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                return False
            raise
        sync_folder(target.parent)
        return True

    def remove(self, folder: str) -> bool:
        """See `Tier`: renamed first, so that a crash leaves no half of it in place."""
        path, removal = self.folder / folder, self.folder / _REMOVING
        try:
            removal.mkdir(parents=True, exist_ok=True)
        except OSError:
            if not path.exists():
                return False
            _clear(path)  # no room even for a folder: what frees room must not need any
            return True
        for left in sorted(removal.iterdir()):  # by a crash
            _clear(left)
        grave = removal / path.name
        try:
            path.rename(grave)
        except FileNotFoundError:
            return False  # another machine was faster
        sync_folder(path.parent)
        _clear(grave)
        return True


def _clear(path: Path) -> None:
    # Several machines may clear at once; what one of them misses the next call finds.
    shutil.rmtree(path, ignore_errors=True)

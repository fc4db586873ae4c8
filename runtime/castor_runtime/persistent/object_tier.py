"""A persistent tier on an object store, by fsspec: S3 and what speaks like it, and others.

Object stores have neither folders nor renaming, but a file is there whole or not at all. So an
attempt's files stay where they were written, and the attempt counts once a manifest that names it
lies where a checkpoint's does, written last, and only if there is none. An attempt that a machine
has given up has a mark, as the others may be writing to it still.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from xxhash import xxh3_128

from castor_runtime.pacing import Pacer
from castor_runtime.persistent.durable_files import (
    WRITE_BYTES,
    DigestedFile,
    FileRecord,
)
from castor_runtime.persistent.refusals import told
from castor_runtime.persistent.tier import FilesDamagedError, StoredFile, TierError

PART_BYTES: Final = 16 << 20
"""Size of the parts in which a file is uploaded: that much of it is held in memory, once more while
it is sent. S3 takes 10,000 parts of a file, so a rank's may have 156 GiB."""

_STILL_USED_S: Final = 120.0
"""What other threads still ask over connections that are given up comes to its end meanwhile."""

_GIVEN_UP: Final = "castor-given-up"


class ObjectTier:
    """A prefix of a bucket.

    Args:
        url: for people and for fsspec, without options.
        protocol: of fsspec.
        options: for its file system.
    """

    attempts = ".castor/attempts"

    def __init__(self, url: str, protocol: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self._protocol = protocol
        self._options = options
        self._root = ""
        self._made: list[Any] = []
        weakref.finalize(self, _close, self._made).atexit = False

    def probe(self) -> None:
        """See `Tier`: a file of a few bytes is put, must be so once only, and is removed."""
        name = f".castor-probe-{uuid4().hex}"
        try:
            self._is_made(name)  # where it is there already, an answer was lost, and it tried again
            twice = self._is_made(name)
        except TierError as error:
            with contextlib.suppress(OSError):  # what failed may have come through
                self._remove(name)
            if isinstance(error.__cause__, PermissionError):
                raise TierError(
                    f"{error}; it can be read, not written to", for_good=True
                ) from error
            raise
        try:
            self._remove(name)
        except TierError as error:
            text = f"{error}; it can be written to, but nothing removed: {name} is left there"
            raise TierError(text, for_good=error.for_good) from error
        if twice:
            raise TierError(
                f"{self.url} makes a file also where there is one: of two machines that publish a "
                "checkpoint the last would count; name a store that knows conditional writes",
                for_good=True,
            )

    def _is_made(self, name: str) -> bool:
        try:
            self._put(name, b"castor", create=True)
        except FileExistsError:
            return False
        return True

    def _remove(self, name: str) -> None:
        """Remove one file; unlike `delete`, of which S3 keeps to itself what it refuses."""
        with self._asked() as files:
            files.rm_file(self._path(name))

    def at(self, name: str) -> str:
        """See `Tier`."""
        return f"{self.url}/{name}" if name else self.url

    def read(self, name: str) -> bytes:
        """See `Tier`."""
        with self._asked() as files:
            content: bytes = files.cat_file(self._path(name))
            return content

    def write(self, name: str, content: bytes, *, executable: bool = False) -> None:  # noqa: ARG002
        """See `Tier`; there are no executable files here."""
        self._put(name, content)

    def _put(self, name: str, content: bytes, *, create: bool = False) -> None:
        with self._asked(makes=True) as files:
            mode = "create" if create else "overwrite"
            files.pipe_file(self._path(name), content, mode=mode)

    @contextmanager
    def writing(self, name: str, pacer: Pacer | None = None) -> Iterator[DigestedFile]:
        """See `Tier`."""
        with self._asked(makes=True) as files:
            remote = files.open(self._path(name), "wb", block_size=PART_BYTES)
        try:
            yield DigestedFile(self._told_of(remote.write), pacer or Pacer())
        except BaseException:
            with contextlib.suppress(Exception):
                remote.discard()
            remote.closed = True  # `close` would make a file of what is there so far
            raise
        with self._asked(makes=True):
            remote.close()

    def _told_of(self, write: Any) -> Any:
        def write_all(piece: memoryview) -> None:
            with self._asked(makes=True):
                write(piece)

        return write_all

    def delete(self, name: str) -> None:
        """See `Tier`."""
        self._delete([name])

    def _delete(self, names: Sequence[str]) -> None:
        with self._asked() as files, contextlib.suppress(FileNotFoundError):
            files.rm([self._path(name) for name in names])

    def files(self, folder: str) -> dict[str, StoredFile]:
        """See `Tier`."""
        return {
            _name_of(entry): StoredFile(int(entry["size"] or 0), _written_s(entry))
            for entry in self._entries(folder)
            if entry["type"] == "file" and _name_of(entry) != _name_of({"name": folder})
        }

    def folders(self, folder: str) -> list[str]:
        """See `Tier`."""
        return sorted(
            _name_of(entry) for entry in self._entries(folder) if entry["type"] == "directory"
        )

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        with self._asked() as files:
            try:
                entries: list[dict[str, Any]] = files.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                bucket = self._root.partition("/")[0]
                if self._protocol == "s3" and not files.exists(bucket):
                    raise told(self.url, FileNotFoundError()) from None
                return []
            return entries

    def digest(self, name: str, pacer: Pacer | None = None) -> tuple[int, str]:
        """See `Tier`."""
        digest = xxh3_128()
        size_bytes = 0
        for piece in self._pieces(name, pacer):
            digest.update(piece)
            size_bytes += len(piece)
        return size_bytes, digest.hexdigest()

    def _pieces(self, name: str, pacer: Pacer | None) -> Iterator[bytes]:
        pacer = pacer or Pacer()
        with self._asked() as files:
            remote = files.open(
                self._path(name), "rb", block_size=WRITE_BYTES, cache_type="readahead"
            )
        with remote:
            while True:
                with self._asked():
                    piece: bytes = remote.read(WRITE_BYTES)
                if not piece:
                    return
                pacer.pace(len(piece))
                yield piece

    @contextmanager
    def whole(
        self, folder: str, files: Sequence[FileRecord], called: str, pacer: Pacer | None = None
    ) -> Iterator[Path]:
        """See `Tier`: a temporary folder, to which the files are copied."""
        with tempfile.TemporaryDirectory(prefix="castor-") as above:
            copy = Path(above) / called
            copy.mkdir()
            self.copy_to(copy, folder, files, pacer)
            yield copy

    def copy_to(
        self, copy: Path, folder: str, files: Sequence[FileRecord], pacer: Pacer | None = None
    ) -> None:
        """Copy files to a folder of this machine; for errors see `Tier.whole`."""
        bad = []
        for record in files:
            digest = xxh3_128()
            size_bytes = 0
            pieces = self._pieces(f"{folder}/{record.name}", pacer)
            with (copy / record.name).open("wb") as local, contextlib.suppress(FileNotFoundError):
                for piece in pieces:
                    digest.update(piece)
                    size_bytes += local.write(piece)
            if (size_bytes, digest.hexdigest()) != record.content:
                bad.append(record.name)
        if bad:
            raise FilesDamagedError(bad)

    # ---- attempts and checkpoints --------------------------------------------------------------

    def begin(self, attempt: str) -> None:
        """See `Tier`."""
        self.delete(f"{attempt}/{_GIVEN_UP}")

    def is_there(self, folder: str) -> bool:
        """See `Tier`."""
        found = self._entries(folder)
        return bool(found) and all(_name_of(entry) != _GIVEN_UP for entry in found)

    def files_of(self, checkpoint: str, attempt: str) -> str:  # noqa: ARG002 - it stays where it is
        """See `Tier`."""
        return attempt

    def publish(self, attempt: str, checkpoint: str, name: str, manifest: bytes) -> None:
        """See `Tier`."""
        if not self.is_there(attempt):
            raise FileNotFoundError(f"{self.at(attempt)} is gone")
        self._put(f"{checkpoint}/{name}", manifest, create=True)

    def set_aside(self, checkpoint: str, aside: str, name: str) -> bool:
        """See `Tier`; the manifest alone is moved."""
        try:
            manifest = self.read(f"{checkpoint}/{name}")
            self._put(f"{aside}/{name}", manifest, create=True)
        except (FileNotFoundError, FileExistsError):
            return False
        self.delete(f"{checkpoint}/{name}")
        return True

    def remove(self, folder: str) -> bool:
        """See `Tier`; of an attempt a mark stays, until it is removed once more."""
        names = self.files(folder)
        is_attempt = folder.startswith(f"{self.attempts}/")
        if is_attempt and names and _GIVEN_UP not in names:
            self.write(f"{folder}/{_GIVEN_UP}", b"")
        gone = [name for name in names if name != _GIVEN_UP or len(names) == 1]
        if gone:
            self._delete([f"{folder}/{name}" for name in gone])
        return bool(gone)

    # ---- asking --------------------------------------------------------------------------------

    @contextmanager
    def _asked(self, *, makes: bool = False) -> Iterator[Any]:
        """Yield the file system; whatever goes wrong is told in a sentence.

        Args:
            makes: a file; that something is not there is an error like another then.

        Raises:
            FileNotFoundError: what is asked for is not there.
            FileExistsError: what is to be made is there.
            TierError: anything else.
        """
        try:
            if not self._made:
                self._connect()
            yield self._made[-1]
        except (TierError, FileExistsError):
            raise
        except Exception as error:  # whatever the many libraries below raise
            if isinstance(error, FileNotFoundError) and not makes:
                raise
            _close(self._made)  # credentials may be others the next time
            raise told(self.url, error) from error

    def _connect(self) -> None:
        import fsspec  # noqa: PLC0415 - seldom used

        kind = fsspec.get_filesystem_class(self._protocol)
        options = {**kind._get_kwargs_from_urls(self.url), **self._options}
        if credentials := options.pop("credentials", ""):
            from aiobotocore.session import AioSession  # noqa: PLC0415 - as above

            options["session"] = AioSession(profile=options.pop("profile", None))
            options["session"].set_config_variable("credentials_file", credentials)
        self._root = str(kind._strip_protocol(self.url)).rstrip("/")
        # Neither what was listed before nor who was asked before: others write there, too.
        made = kind(skip_instance_cache=True, use_listings_cache=False, **options)
        if self._protocol == "s3":
            # Else its connections are closed by whoever collects garbage, in that thread's loop.
            made.asynchronous = True
        self._made.append(made)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


def _close(made: list[Any]) -> None:
    """Close the connections of a file system, in the loop that they belong to."""
    while made:
        creator = getattr(made.pop(), "_s3creator", None)
        if creator is not None:
            from fsspec.asyn import get_loop  # noqa: PLC0415 - seldom used

            asyncio.run_coroutine_threadsafe(_close_later(creator), get_loop())


async def _close_later(creator: Any) -> None:
    await asyncio.sleep(_STILL_USED_S)
    await creator.__aexit__(None, None, None)


def _name_of(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _written_s(entry: Mapping[str, Any]) -> float:
    for key in ("LastModified", "mtime", "updated", "last_modified"):
        found = entry.get(key)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, int | float):
            return float(found)
    return 0.0

"""Write a file whole or not at all, and none over what Castor did not write.

Every file that is written here carries the digest of its bytes as an extended attribute, so that it
is known again for as long as nobody changes it: not a file of the user's own, nor one of Castor's
that the user has edited since. Where a file system has no such attributes (some network ones), the
digests stand in a file `.castor-files` beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR
from pathlib import Path

from castor_configs.errors import InputError

_MARK = "user.castor.sha256"
_LIST = ".castor-files"


def output_folder(path: str | Path) -> Path:
    """Make a folder for results, and find out before the work whether it can be written.

    Raises:
        InputError: it is no folder, or not writable.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made a folder: {error.strerror}", file=folder) from error
    if not os.access(folder, os.W_OK):
        raise InputError("cannot be written", file=folder)
    return folder


def output_file(
    path: str | Path,
    *,
    key: str | None = None,
    overwrite: bool = False,
    reads: Iterable[str | Path] = (),
) -> Path:
    """Find out before the work, or before the first of several files, that a file may be written.

    Args:
        path: what is to be written.
        key: the option that asked for the file, for the error.
        overwrite: whether what is there may be replaced, whoever wrote it.
        reads: files that the work reads; these are never written.

    Raises:
        InputError: it is a folder, one of `reads`, or a file that Castor did not write.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError("expected a file; this is a folder", file=file, key=key)
    if not file.exists():
        return file
    if any(Path(read).exists() and file.samefile(read) for read in reads):
        raise InputError(
            "is read by this command, and would be replaced: name another place", file=file, key=key
        )
    if not overwrite and not is_own(file):
        raise InputError(
            "is there already, and castor did not write it (or it was changed since): name another "
            "place, or give --overwrite",
            file=file,
            key=key,
        )
    return file


def output_files(
    folder: Path, names: Iterable[str], *, overwrite: bool, reads: Iterable[str | Path] = ()
) -> tuple[Path, ...]:
    """Find out before the work that each file may be written; the folder is made with the first.

    Raises:
        InputError: as `output_folder` and `output_file`.
    """
    output_folder(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
    given = tuple(reads)
    return tuple(output_file(folder / name, overwrite=overwrite, reads=given) for name in names)


def is_own(path: str | Path) -> bool:
    """Say whether Castor wrote this file, and nobody has changed it since."""
    file = Path(path)
    try:
        mark = os.getxattr(file, _MARK).decode()
    except OSError:
        mark = _listed(file.parent).get(file.name, "")
    return bool(mark) and file.is_file() and mark == _digest(file)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path`; rename it over `path` once the block ends without an error.

    The folder is made if need be. On an error nothing is left behind and an older file stays.

    Raises:
        OSError: naming `path`, which its reader knows, and not the file beside it.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(EISDIR, "is a folder: expected the name of a file", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        yield beside
        _mark(beside, target)
        beside.replace(target)
    except OSError as error:
        if error.filename == str(beside):
            error.filename = str(target)
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _mark(beside: Path, target: Path) -> None:
    """Have what is about to become `target` known again as Castor's."""
    digest = _digest(beside)
    try:
        os.setxattr(beside, _MARK, digest.encode())
    except OSError:
        listed = _listed(target.parent) | {target.name: digest}
        with suppress(OSError):  # then it is not known again, and --overwrite is asked for
            (target.parent / _LIST).write_text(json.dumps(listed, indent=1) + "\n")


def _listed(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

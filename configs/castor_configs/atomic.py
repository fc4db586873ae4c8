"""Write a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path

from castor_configs.errors import InputError


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


def output_file(path: str | Path, *, key: str | None = None) -> Path:
    """Find out before the work, or before the first of several files, that a folder is not there.

    Raises:
        InputError: one is; naming `key`, the option that asked for the file.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError("expected a file; this is a folder", file=file, key=key)
    return file


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
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(target)
    except OSError as error:
        if error.filename == str(beside):
            error.filename = str(target)
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")

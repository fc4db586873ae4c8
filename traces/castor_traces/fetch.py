"""Find a public data set on this computer, or download it and check that it is the right one."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from castor_configs.atomic import replacing
from castor_configs.errors import InputError
from castor_traces.catalog import DataFile, DataSet, find

FOLDER_VARIABLE: Final = "CASTOR_TRACES"
#: A file of a public repository is at BASE_URL/owner/name/commit/path.
BASE_URL: Final = "https://raw.githubusercontent.com"

_TIMEOUT_S = 60.0


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/castor/traces`, in `~/.cache` if that variable is not set.

    Raises:
        InputError: there is no home folder either.
    """
    # The XDG specification has relative paths ignored.
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if stated.is_absolute():
        return stated / "castor" / "traces"
    try:
        return Path.home() / ".cache" / "castor" / "traces"
    except RuntimeError:
        raise InputError("no home folder to cache in: set XDG_CACHE_HOME") from None


def locate(name: str) -> Path | None:
    """Return the file of what `name` stands for, if this computer has it.

    Looked for in the folder that CASTOR_TRACES names, then in `../shared/traces` beside the
    repository (where Castor runs from one), then in the cache; in each, in the data set's own
    folder and then in the folder itself. A file may also be packed by gzip (name + ".gz").
    Nothing is checked here: `check_published` does.

    Raises:
        InputError: nothing is called `name`, or CASTOR_TRACES names no folder.
    """
    data, trace = find(name)
    for folder in _folders(data):
        path = _file_in(folder, data.file(trace.file))
        if path is not None:
            return path
    return None


def fetch(name: str, *, folder: Path | None = None, base_url: str = BASE_URL) -> Path:
    """Download the file of what `name` stands for, unless it is there already.

    Args:
        name: a named trace, or a data set: then all of its files are fetched.
        folder: where data sets are kept; None: `cache_folder()`.
        base_url: where public repositories are found.

    Returns:
        `folder`/data set/file, whole and with the published SHA-256; for a data set, the file
        of its first trace.

    Raises:
        InputError: nothing is called `name`; there is no network; the file is gone, cut short or
            another one than published (then nothing is kept).
    """
    data, trace = find(name)
    place = (cache_folder() if folder is None else folder) / data.name
    wanted = data.files if name == data.name else (data.file(trace.file),)
    for file in wanted:
        path = place / file.name
        if not (path.is_file() and _sha256(path.read_bytes()) == file.sha256):
            _download(data, file, path, base_url)
    return place / trace.file


def check_published(path: Path, name: str) -> str:
    """Return the SHA-256 of the file's published form, having checked that it is the right one.

    Raises:
        InputError: it cannot be read, or is not the file that was published under this name.
    """
    data, trace = find(name)
    file = data.file(trace.file)
    try:
        content = path.read_bytes()
        if path.name == f"{file.name}.gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"damaged ({error}); {_how_to_fetch(name)}", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    found = _sha256(content)
    if found != file.sha256:
        raise InputError(
            f"not the file published as {name}: expected SHA-256 {file.sha256}, found {found}; "
            f"{_how_to_fetch(name)}, or import this file by its path",
            file=path,
        )
    return found


def missing(name: str) -> InputError:
    """Return the error that says how to come by a data set which is not here."""
    return InputError(
        f"the data set is not on this computer: {_how_to_fetch(name)}, or set {FOLDER_VARIABLE} "
        "to a folder that holds it",
        key=name,
    )


def _how_to_fetch(name: str) -> str:
    return f"run 'castor trace fetch {name}'"


def _folders(data: DataSet) -> Iterator[Path]:
    for folder in _roots():
        yield folder / data.name
        yield folder


def _roots() -> Iterator[Path]:
    stated = os.environ.get(FOLDER_VARIABLE, "")
    if stated:
        if not Path(stated).is_dir():
            raise InputError(f"expected a folder, not {stated!r}", key=FOLDER_VARIABLE)
        yield Path(stated)
    repository = Path(__file__).resolve().parents[2]
    # In an installed package the same steps up lead to some folder of Python's.
    if (repository / "pyproject.toml").is_file():
        yield repository.parent / "shared" / "traces"
    yield cache_folder()


def _file_in(folder: Path, file: DataFile) -> Path | None:
    for path in (folder / file.name, folder / f"{file.name}.gz"):
        if path.is_file():
            return path
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(data: DataSet, file: DataFile, path: Path, base_url: str) -> None:
    url = f"{base_url.rstrip('/')}/{data.repository}/{data.commit}/{file.path}"
    instead = (
        f"check the network, or put the file at {path} by hand "
        f"(from {data.repository}, commit {data.commit}, {file.path})"
    )
    try:
        with _opener().open(url, timeout=_TIMEOUT_S) as response:
            # One byte more than published, so that a longer file is seen without reading it all.
            content: bytes = response.read(file.size_bytes + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{url}: {error.code} {error.reason}; {instead}", key=data.name) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{url}: {reason}; {instead}", key=data.name) from error
    if len(content) != file.size_bytes:
        size = "more" if len(content) > file.size_bytes else str(len(content))
        raise InputError(
            f"{url}: expected {file.size_bytes} bytes, received {size}; {instead}", key=data.name
        )
    found = _sha256(content)
    if found != file.sha256:
        raise InputError(
            f"{url}: expected SHA-256 {file.sha256}, received {found}: not the published file, "
            f"nothing was kept; {instead}",
            key=data.name,
        )
    try:
        with replacing(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=path) from error


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener of http and https only: the default one also opens local files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener

"""Any trace by its name or path: Castor's own files, and the public data sets."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from castor_configs.errors import InputError
from castor_traces.catalog import DataSet, catalog, find, is_known
from castor_traces.fetch import cache_folder, check_published, locate, missing
from castor_traces.importers import FORMATS, IMPORTER_VERSION, Imported
from castor_traces.read import load, read_trace
from castor_traces.trace import Trace
from castor_traces.write import COLUMNS, write_trace

_ROWS_READ = "rows_read"


def load_any(
    name_or_path: str | Path,
    *,
    skip_bad: bool = False,
    cache: Path | None = None,
    **options: Any,
) -> Imported:
    """Return a trace by the name of a data set ("infinitehbd", "lanl-20") or by its path.

    A name comes before a file of that name (write "./lanl-20" for the file). A named data set is
    found as `fetch.locate` says, checked against its published SHA-256, and imported; the outcome
    is kept as a Castor trace in `cache`, by the checksum of the file, the version of the
    importers and the options. The notes "file" and "sha256" say which file was used.

    Args:
        name_or_path: a name of `catalog`, the path of a trace in Castor's own format, or the path
            of a published file under its published name.
        skip_bad: leave malformed rows out and count them; nothing is cached if there are any.
        cache: the folder for imported traces; None: "imported" in `fetch.cache_folder()`.
        options: further arguments of the importer (`system` for LANL, `year` for Titan).

    Raises:
        InputError: no such name or file; the data set is not on this computer (the error says how
            to fetch it); it is not the published one; an option that the importer does not have;
            a malformed row.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str) and is_known(name):
        return _load_named(name, skip_bad, cache, options)
    path = Path(name_or_path)
    if not path.exists() and path.name == name:
        find(name)  # raises: it is neither, and the nearest names are worth saying
    form = format_of(path)
    if form:
        return import_file(path, form, skip_bad=skip_bad, **options)
    if options:
        raise InputError(f"a Castor trace takes no {', '.join(sorted(options))}", file=path)
    trace, bad = load(path, skip_bad)
    return Imported(trace, tuple(bad), len(trace.failures) + len(bad))


def import_file(path: str | Path, form: str, *, skip_bad: bool = False, **options: Any) -> Imported:
    """Import a published file by the name of its format (a key of `importers.FORMATS`).

    Raises:
        InputError: an unknown format, an option that the importer does not have, and all that
            the importer raises.
    """
    importer = FORMATS.choose(form, "format")
    accepted = [p for p in inspect.signature(importer).parameters if p not in ("path", "skip_bad")]
    for option in sorted(options):
        if option not in accepted:
            has = ", ".join(accepted) or "none"
            raise InputError(f"the importer of {form} has no such option; it has {has}", key=option)
    return importer(path, skip_bad=skip_bad, **options)


def format_of(path: Path) -> str:
    """Return the format of a published file by its name; "" for any other file.

    A file that begins as a Castor trace does is one, whatever its name.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(",".join(COLUMNS)) + 3).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    if start.startswith((b"#", b"time_s,")):
        return ""
    published = {t.file: t.format for data in catalog() for t in data.traces}
    published |= {
        "faults_flat.csv": "infinitehbd",
        "cluster_job_log": "philly",
        "trace_seren.csv": "acme",
        "trace_kalos.csv": "acme",
    }
    published = {_unpacked(file): form for file, form in published.items()}
    return published.get(_unpacked(path.name), "")


def _unpacked(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".xz")


def _load_named(name: str, skip_bad: bool, cache: Path | None, options: dict[str, Any]) -> Imported:
    data, entry = find(name)
    path = locate(entry.name)
    if path is None:
        raise missing(entry.name)
    sha256 = check_published(path, entry.name)
    options = {**dict(entry.options), **options}
    kept = _kept_at(cache, entry.name, sha256, options)
    imported = _read_kept(kept)
    if imported is None:
        imported = import_file(path, entry.format, skip_bad=skip_bad, **options)
        imported = replace(imported, trace=_with_origin(imported, data, path.name, sha256))
        if not imported.bad_rows:
            _keep(imported.trace, kept)
    return imported


def _kept_at(cache: Path | None, name: str, sha256: str, options: dict[str, Any]) -> Path:
    folder = cache_folder() / "imported" if cache is None else cache
    text = f"{sha256} {IMPORTER_VERSION} {sorted(options.items())!r}"
    return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.csv"


def _read_kept(path: Path) -> Imported | None:
    try:
        trace = read_trace(path)
        rows_read = int(dict(trace.notes)[_ROWS_READ])
    except (InputError, KeyError, ValueError):
        # Not there, or not what was kept: import again and write over it.
        return None
    return Imported(trace, (), rows_read)


def _keep(trace: Trace, path: Path) -> None:
    try:
        write_trace(trace, path)
    except OSError:
        # A cache that cannot be written costs time, nothing else.
        return


def _with_origin(imported: Imported, data: DataSet, file: str, sha256: str) -> Trace:
    notes = (
        *imported.trace.notes,
        ("citation", data.citation),
        ("file", f"{data.repository} {data.commit} {file.removesuffix('.gz')}"),
        ("sha256", sha256),
        (_ROWS_READ, str(imported.rows_read)),
    )
    return replace(imported.trace, notes=notes)

"""Read a trace in Castor's own format, and say where a faulty one is at fault."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from castor_configs.errors import InputError
from castor_traces.seconds import ns_from_seconds_text
from castor_traces.trace import KINDS, MAX_MACHINES, Failure, FailureKind, Trace, make_trace
from castor_traces.write import COLUMNS

_FEED, _RETURN = "\n", "\r"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out: its 1-based line (record, in JSON) and what is wrong with it."""

    line: int
    reason: str


def read_trace(path: str | Path, skip_bad: bool = False) -> Trace:
    """Read the trace at `path`; rows may stand in any order.

    Args:
        path: a file in the format of traces/README.md, UTF-8.
        skip_bad: leave malformed rows out; `load` returns them as well.

    Raises:
        InputError: names the file, the line, the column and what was expected.
    """
    return load(path, skip_bad)[0]


def load(path: str | Path, skip_bad: bool = False) -> tuple[Trace, list[BadRow]]:
    """Read the trace at `path` and return it with the rows left out (none unless `skip_bad`).

    A fault in the head or in the header is never skipped: without them no row means anything.

    Raises:
        InputError: as `read_trace`.
    """
    return parse(read_text(path), file=str(path), skip_bad=skip_bad)


def read_text(path: str | Path) -> str:
    """Return the UTF-8 text of the file.

    Raises:
        InputError: there is no such file, it cannot be read, or it is no UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    return decoded(data, path)


def decoded(data: bytes, path: str | Path) -> str:
    """Return the UTF-8 text of a file's content; InputError with its line where it is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("expected UTF-8 text", file=path, line=line) from error


def parse(text: str, *, file: str, skip_bad: bool = False) -> tuple[Trace, list[BadRow]]:
    """Parse the text of a trace; `file` is its name in errors, and its stem the default name.

    Raises:
        InputError: as `read_trace`.
    """
    lines = _numbered(text)
    head, header_line = _read_head(lines, file)
    order = _read_header(header_line, file)
    machines, span_ns = _machines_and_span(head, file)
    failures: list[Failure] = []
    bad: list[BadRow] = []
    for number, line in lines:
        try:
            failures.append(_read_row(line, order, machines, span_ns))
        except _RowError as error:
            if not skip_bad:
                raise InputError(error.reason, file=file, line=number, key=error.column) from None
            bad.append(BadRow(number, f"{error.column}: {error.reason}".removeprefix(": ")))
    known = {key: value for key, (value, _) in head.items()}
    trace = make_trace(
        known.pop("name", "") or Path(file).stem or "trace",
        machines,
        span_ns,
        failures,
        source=known.pop("source", ""),
        licence=known.pop("licence", ""),
        notes=[(k, v) for k, v in known.items() if k not in ("machines", "span_s")],
    )
    return trace, bad


class _RowError(Exception):
    """A malformed row: the column at fault ("" for the row as a whole) and the reason."""

    def __init__(self, column: str, reason: str) -> None:
        self.column = column
        self.reason = reason
        super().__init__(reason)


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): it breaks at form feeds and Unicode separators that a cause may hold.
    for number, raw in enumerate(text.split(_FEED), start=1):
        line = raw.removesuffix(_RETURN)
        if line.strip():
            yield number, line


_Head = dict[str, tuple[str, int]]


def _read_head(lines: Iterator[tuple[int, str]], file: str) -> tuple[_Head, tuple[int, str]]:
    head: _Head = {}
    for number, line in lines:
        if not line.startswith("#"):
            return head, (number, line)
        key, colon, value = line[1:].partition(":")
        key, value = key.strip(), value.strip()
        if not colon or not key:
            raise InputError("expected '# key: value'", file=file, line=number)
        if key in head:
            raise InputError(
                f"given before, on line {head[key][1]}; keep one", file=file, line=number, key=key
            )
        if _RETURN in value or _RETURN in key:
            raise InputError("a carriage return inside the line", file=file, line=number, key=key)
        head[key] = (value, number)
    what = "no header after the '#' lines" if head else "the file is empty"
    raise InputError(f"{what}; expected the header {','.join(COLUMNS)}", file=file)


def _read_header(header: tuple[int, str], file: str) -> tuple[int, ...]:
    """Return, for each of `COLUMNS`, its position in the rows."""
    number, line = header
    try:
        names = [name.strip() for name in _split(line)]
    except _RowError as error:
        raise InputError(error.reason, file=file, line=number, key="header") from None
    missing = [name for name in COLUMNS if name not in names]
    extra = [name for name in names if name not in COLUMNS]
    if missing or extra or len(names) != len(COLUMNS):
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(repr(name) for name in extra)}"] if extra else []
        raise InputError(
            f"expected the columns {','.join(COLUMNS)}; "
            + ("; ".join(parts) or "a column is named twice"),
            file=file,
            line=number,
            key="header",
        )
    return tuple(names.index(name) for name in COLUMNS)


def _machines_and_span(head: _Head, file: str) -> tuple[int, int]:
    for key in ("machines", "span_s"):
        if key not in head:
            raise InputError(
                f"missing: add a line '# {key}: ...' above the header", file=file, key=key
            )
    text, number = head["machines"]
    machines = int(text) if _is_whole(text) else 0
    if not 1 <= machines <= MAX_MACHINES:
        raise InputError(
            f"expected a whole number of machines, at least 1, not {text!r}",
            file=file,
            line=number,
            key="machines",
        )
    text, number = head["span_s"]
    try:
        span_ns = ns_from_seconds_text(text)
    except ValueError as error:
        raise InputError(str(error), file=file, line=number, key="span_s") from None
    if span_ns < 0:
        raise InputError(
            f"expected seconds, at least 0, not {text}", file=file, line=number, key="span_s"
        )
    return machines, span_ns


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _split(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader((line,), strict=True))
    except csv.Error as error:
        raise _RowError("", f"malformed quotes: {error}") from None


def _read_row(line: str, order: tuple[int, ...], machines: int, span_ns: int) -> Failure:
    fields = _split(line)
    if len(fields) != len(order):
        raise _RowError("", f"expected {len(order)} fields, found {len(fields)}")
    time, machine, kind, duration, domain, cause = (fields[position] for position in order)
    if _RETURN in domain or _RETURN in cause:
        raise _RowError("", "a carriage return inside the line")
    time_ns = _read_seconds("time_s", time)
    if time_ns > span_ns:
        raise _RowError("time_s", f"expected a time within the span (span_s), not {time.strip()}")
    return Failure(
        time_ns=time_ns,
        machine=_read_machine(machine.strip(), machines),
        kind=_read_kind(kind.strip()),
        duration_ns=_read_seconds("duration_s", duration) if duration.strip() else None,
        domain=domain,
        cause=cause,
    )


def _read_seconds(column: str, text: str) -> int:
    try:
        ns = ns_from_seconds_text(text)
    except ValueError as error:
        raise _RowError(column, str(error)) from None
    if ns < 0:
        raise _RowError(column, f"expected seconds, at least 0, not {text.strip()}")
    return ns


def _read_machine(text: str, machines: int) -> int | None:
    if not text:
        return None
    if not _is_whole(text) or int(text) >= machines:
        raise _RowError("machine", f"expected 0..{machines - 1} or nothing, not {text!r}")
    return int(text)


def _read_kind(text: str) -> FailureKind:
    for kind in KINDS:
        if text == kind:
            return kind
    raise _RowError("kind", f"expected {' or '.join(KINDS)}, not {text!r}")

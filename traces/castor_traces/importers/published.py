"""Published files as they are: opened, cut into rows, and their malformed rows accounted for."""

from __future__ import annotations

import csv
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from castor_configs.errors import InputError
from castor_traces.read import BadRow, decoded
from castor_traces.trace import NS_PER_S, Trace

NS_PER_MS = 1_000_000
NS_PER_MINUTE = 60 * NS_PER_S
NS_PER_DAY = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Imported:
    """What an importer made of a published file.

    Attributes:
        trace: the failures.
        bad_rows: the malformed rows that were left out; empty unless that was asked for.
        rows_read: the rows of the file that were looked at, malformed ones included.
    """

    trace: Trace
    bad_rows: tuple[BadRow, ...]
    rows_read: int


class MalformedRowError(Exception):
    """A row that does not mean anything; the message says what was expected."""


@dataclass(slots=True)
class RowLog:
    """Counts the rows of a file, and stops at the first malformed one or keeps a list of them."""

    file: str
    skip_bad: bool
    rows_read: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)

    @contextmanager
    def row(self, line: int, *, again: bool = False) -> Iterator[None]:
        """Guard the reading of one row; `again` if it was counted before.

        Raises:
            InputError: the block raised `MalformedRowError`, and bad rows are not to be skipped.
        """
        self.rows_read += not again
        try:
            yield
        except MalformedRowError as error:
            if not self.skip_bad:
                raise InputError(str(error), file=self.file, line=line) from None
            self.bad_rows.append(BadRow(line, str(error)))

    def imported(self, trace: Trace) -> Imported:
        """Return the outcome, bad rows in the order of the file."""
        ordered = sorted(self.bad_rows, key=lambda bad: bad.line)
        return Imported(trace, tuple(ordered), self.rows_read)


def read_published(path: str | Path) -> str:
    """Return the text of a file, unpacked if it is gzip or xz by its first bytes.

    Raises:
        InputError: it cannot be read, is cut short or damaged, or is no UTF-8 text.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        elif data.startswith(b"\xfd7zXZ\x00"):
            data = lzma.decompress(data)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"damaged or cut short ({error}); fetch it again", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    return decoded(data, path)


def numbered_rows(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that is not blank, with its 1-based number."""
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.removesuffix("\r")
        if line.strip():
            yield number, line


def split_row(line: str) -> list[str]:
    """Split one line of CSV into its fields, blanks around them removed.

    Raises:
        MalformedRowError: its quotes do not match.
    """
    if '"' not in line:
        return [part.strip() for part in line.split(",")]
    try:
        return [part.strip() for part in next(csv.reader((line,), strict=True))]
    except csv.Error as error:
        raise MalformedRowError(f"malformed quotes: {error}") from None


@dataclass(slots=True)
class Table:
    """A CSV file with a header: rows by the names of their columns.

    Attributes:
        file: its name in errors.
        text: its whole text.
        columns: the columns that it must have; others are carried along.
        what: the name of the format, for the error when they are missing.
    """

    file: str
    text: str
    columns: Sequence[str]
    what: str

    def lines(self) -> Iterator[tuple[int, str, list[str]]]:
        """Yield (line number, line, header) for each row.

        Raises:
            InputError: the file is empty or the header lacks a column.
        """
        rows = numbered_rows(self.text)
        number, first = next(rows, (1, ""))
        try:
            header = split_row(first)
        except MalformedRowError as error:
            raise InputError(str(error), file=self.file, line=number) from None
        missing = [name for name in self.columns if name not in header]
        if missing:
            raise InputError(
                f"this is no {self.what} file: the header lacks {', '.join(missing)}",
                file=self.file,
                line=number,
            )
        for number, line in rows:
            yield number, line, header


def fields_of(line: str, header: list[str]) -> dict[str, str]:
    """Return the fields of a row by the names of their columns.

    Raises:
        MalformedRowError: there are more or fewer fields than columns.
    """
    fields = split_row(line)
    if len(fields) != len(header):
        raise MalformedRowError(f"expected {len(header)} fields, found {len(fields)}")
    return dict(zip(header, fields, strict=True))


def local_instant(text: str, form: str, what: str) -> datetime:
    """Read a local date and time that names no time zone.

    It stays a bare reading of the clock on the wall, never converted by this computer's own time
    zone: differences are those of the readings, so an interval across a change to or from
    daylight saving time is an hour off, and everything else is exact.

    Raises:
        MalformedRowError: the text is not of that form.
    """
    try:
        return datetime.strptime(text, form)
    except ValueError:
        raise MalformedRowError(f"{what}: expected {form}, not {text!r}") from None


def ns_between(start: datetime, end: datetime) -> int:
    """Return end - start in nanoseconds, exact."""
    return (end - start) // timedelta(microseconds=1) * 1000


def whole(text: str, what: str) -> int:
    """Read a whole number, at least 0.

    Raises:
        MalformedRowError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise MalformedRowError(f"{what}: expected a whole number, at least 0, not {text!r}")
    return int(text)


def one_line(text: str) -> str:
    """Return free text on one line, runs of blanks made one."""
    return re.sub(r"\s+", " ", text).strip()

"""The one error that every room raises for input that a person can correct."""

from __future__ import annotations

from pathlib import Path


class InputError(Exception):
    """Bad input: says where it stands and what was expected.

    The command line prints it on stderr without a traceback and exits with code 2.

    Args:
        message: what is wrong and what was expected.
        file: the file that holds the fault, if one does.
        line: its 1-based line in that file, if known.
        key: the dotted key or the column at fault, if any.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        self.message = message
        self.file = str(file) if file is not None else None
        self.line = line
        self.key = key
        super().__init__(str(self))

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place = f"{place}:{self.line}" if place else f"line {self.line}"
        return ": ".join(part for part in (place, self.key or "", self.message) if part)

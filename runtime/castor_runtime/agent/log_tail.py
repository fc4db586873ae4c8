"""What a process said last: the reason that a person wants to read first."""

from __future__ import annotations

import re
from pathlib import Path

_WARNING = re.compile(r"^\S.*:\d+: \w*Warning: ")
"""As Python shows one: the place and the words, and below them its line of source, indented."""

_TAIL_BYTES = 16384
_WORDS_LENGTH = 300


def log_end(log: Path, since: int = 0) -> str:
    """Return the end of a log, at most 16 KiB; "" if there is none.

    Args:
        log: the file.
        since: its size when the process began that is asked about: what is before, others said.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(min(since, size), size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(text: str) -> str:
    """Return the last line that is no warning and not blank; of a traceback the exception."""
    found = above = ""
    for line in text.splitlines():
        shown_with_warning = line.startswith("  ") and _WARNING.match(above)
        if line.strip() and not shown_with_warning and not _WARNING.match(line):
            found = line.strip()[:_WORDS_LENGTH]
        above = line
    return found


def last_words(log: Path, since: int = 0) -> str:
    """Return the last line of a log that says something; see `log_end` and `last_line`."""
    return last_line(log_end(log, since))

"""What a process said last: the reason that a person wants to read first."""

from __future__ import annotations

from pathlib import Path

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
    """Return the last line that is not blank; of a traceback that is the exception."""
    lines = (line.strip()[:_WORDS_LENGTH] for line in reversed(text.splitlines()) if line.strip())
    return next(lines, "")


def last_words(log: Path, since: int = 0) -> str:
    """Return the last line of a log that is not blank; see `log_end`."""
    return last_line(log_end(log, since))

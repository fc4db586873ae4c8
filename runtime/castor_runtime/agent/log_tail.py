"""What a process said last: the reason that a person wants to read first."""

from __future__ import annotations

from pathlib import Path

_TAIL_BYTES = 16384


def last_words(log: Path) -> str:
    """Return the last line of a log that is not blank; of a traceback that is the exception."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

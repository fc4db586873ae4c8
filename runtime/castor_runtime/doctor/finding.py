"""What an examination finds: in order or not, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """How something is."""

    GOOD = "good"
    NOTE = "note"
    """It works, and might work better, or could not be looked at."""
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: that was, such as "ports".
        health: how it is.
        found: in words.
        advice: what to do; "" where all is well.
    """

    what: str
    health: Health
    found: str
    advice: str = ""


def good(what: str, found: str) -> Finding:
    """Return that something is in order."""
    return Finding(what, Health.GOOD, found)


def note(what: str, found: str, advice: str) -> Finding:
    """Return that something could be better, or could not be looked at."""
    return Finding(what, Health.NOTE, found, advice)


def bad(what: str, found: str, advice: str) -> Finding:
    """Return that something would keep the host from its work."""
    return Finding(what, Health.BAD, found, advice)

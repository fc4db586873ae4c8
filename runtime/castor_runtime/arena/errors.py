"""What can be wrong with a piece of checkpoint memory."""

from __future__ import annotations


class ArenaError(Exception):
    """Checkpoint memory cannot be used as asked; the message names the segment."""


class ForeignCheckpointError(ArenaError):
    """A segment belongs to another job, topology or layout version, or is none of ours."""


class IterationMissingError(ArenaError):
    """No complete buffer holds the iteration asked for."""


class DamagedPartError(IterationMissingError):
    """A buffer that says it is complete does not match its digests, so it holds no iteration."""


class WritingLostError(ArenaError):
    """The buffer was taken from its writer before the commit; nothing was committed."""

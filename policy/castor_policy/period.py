"""Which iterations are checkpointed, where not every one is: the multiples of a period.

They are counted from the first iteration of the job and not from where a generation began, so that
all ranks, and whoever waits for a checkpoint, know them without a word. Written in the subset of
Python that the sweep engine compiles as it stands.
"""

from __future__ import annotations


def is_due(iteration: int, every: int) -> bool:
    """Whether a checkpoint is taken of an iteration, one of each `every`, which is 1 or more."""
    return iteration % every == 0


def last_due(iteration: int, every: int) -> int:
    """Return the newest iteration up to this one of which a checkpoint is taken; 0: none yet."""
    return iteration // every * every


def next_due(iteration: int, every: int) -> int:
    """Return the first iteration from this one on of which a checkpoint is taken."""
    return -(-iteration // every) * every

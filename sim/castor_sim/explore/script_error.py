"""What the user's training script does wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScriptError:
    """An error of the user's script that recurs in every generation.

    Attributes:
        rank: whose trainer ends with it.
        iteration: in which it does; 1 is the first.
        after_the_update: whether its update comes before it.
    """

    rank: int
    iteration: int
    after_the_update: bool

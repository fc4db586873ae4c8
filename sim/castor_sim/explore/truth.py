"""Which state every rank has after every iteration, as training really went.

Training is not repeatable here: what an iteration makes of a state depends on the generation that
trains it, and the start on the run. So memory of another run, or of a generation that was given up
and trained again, is a wrong state, though rank and iteration are right.
"""

from __future__ import annotations

from typing import TypeAlias

Line: TypeAlias = tuple[int, ...]
"""For each iteration, from the first on, the generation that trained it."""


def first_state(run: int, rank: int) -> int:
    """Return the state of `rank` at the start of a run."""
    return next_state(rank + 1, 0, run)


def next_state(state: int, iteration: int, generation: int) -> int:
    """Return what the update of `iteration`, in `generation`, makes of a state."""
    mixed = state * 6364136223846793005 + iteration * 1442695040888963407
    return (mixed + generation * 2862933555777941757 + 1) % 2**64


class Truth:
    """The states of one job.

    Args:
        run: which run of the job's name.
        ranks: how many train.

    Attributes:
        newest: the newest generation that has trained.
    """

    __slots__ = ("_line", "_states", "_switches", "newest")

    def __init__(self, run: int, ranks: int) -> None:
        self._line: list[int] = []
        self.newest = 0
        self._states = [[first_state(run, rank) for rank in range(ranks)]]
        self._switches: dict[int, Line] = {}

    def line(self, iteration: int) -> Line:
        """Return who trained the iterations up to this one."""
        return tuple(self._line[:iteration])

    def state(self, rank: int, iteration: int) -> int | None:
        """Return the right state; None if what was trained so far has no such iteration."""
        return self._states[iteration][rank] if iteration < len(self._states) else None

    def state_on(self, line: Line, rank: int) -> int:
        """Return the state of `rank` at the end of a line."""
        state = self._states[0][rank]
        for iteration, generation in enumerate(line, start=1):
            state = next_state(state, iteration, generation)
        return state

    def switch(self, generation: int, line: Line) -> None:
        """Take in that a generation goes on from here, once it trains: a persistent checkpoint."""
        self._switches.setdefault(generation, line)

    def switch_of(self, generation: int) -> Line | None:
        """Return the line that a generation's persistent checkpoint is of; None if it has none."""
        return self._switches.get(generation)

    def trained(self, iteration: int, generation: int) -> bool:
        """Take in that a rank has ended an iteration; False if nothing follows from it.

        So it is where a rank that was paused ends what a newer generation has trained anew.
        """
        if generation < self.newest:
            return False
        self.newest = generation
        line = self._switches.pop(generation, None)
        if line is not None and tuple(self._line) != line:
            self._line, first = list(line), self._states[0]
            self._states = [first]
            for number, by in enumerate(line, start=1):
                self._append(number, by)
        if len(self._line) >= iteration and self._line[iteration - 1] == generation:
            return True
        # What an earlier generation made of this iteration, and of those after it, is given up.
        del self._line[iteration - 1 :]
        del self._states[iteration:]
        self._line.append(generation)
        self._append(iteration, generation)
        return True

    def _append(self, iteration: int, generation: int) -> None:
        before = self._states[-1]
        self._states.append([next_state(state, iteration, generation) for state in before])

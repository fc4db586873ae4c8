"""Silent errors: they spoil what is computed after them, and are seen only later.

Until the error is seen every checkpoint is taken as usual, and those of later iterations hold it.
A failure meanwhile loads it again, unless it loads state from before. Once it is seen, only such
state will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import simpy

from castor_policy.recovery import NO_ITERATION
from castor_sim.simpy_failures import SET_ASIDE, LateEvent, Process
from castor_sim.strategy_costs import NEVER_NS


class Corruption(NamedTuple):
    """An error in what is computed; times in ns.

    Attributes:
        time_ns: it strikes; nothing is spoiled where the job does not train just then.
        seen_after_ns: it is seen so much later.
    """

    time_ns: int
    seen_after_ns: int


class Persisted:
    """The complete persistent checkpoints that are kept.

    Args:
        every: period in iterations; 0: none are taken.
        kept: how many.
    """

    def __init__(self, every: int, kept: int) -> None:
        self._every = every
        self._kept = kept
        self._iterations: list[int] = []

    def completed(self, start: int, newest: int) -> None:
        """Take in those of a segment that began at `start`, up to the newest."""
        more = min(self._kept - 1, (newest - start - 1) // self._every)
        self._iterations += range(newest - more * self._every, newest + 1, self._every)
        del self._iterations[: -self._kept]

    def newest(self, limit: int) -> int:
        """Return the newest that is of iteration `limit` at most, or NO_ITERATION."""
        return max((one for one in self._iterations if one <= limit), default=NO_ITERATION)

    def loaded(self, iteration: int) -> None:
        """Forget those that are newer than what was loaded: they are spoiled."""
        self._iterations = [one for one in self._iterations if one <= iteration]


class Integrity:
    """Up to which iteration the state is known to be sound.

    Args:
        env: the simulation.
        corruptions: in order of time. While one is not over, others do not matter.
        done: returns the last iteration that has ended in training; -1: the job does not train.
        seen: called when an error is seen.

    Attributes:
        limit: the newest iteration that may be loaded.
    """

    def __init__(
        self,
        env: simpy.Environment,
        corruptions: Iterable[Corruption],
        done: Callable[[], int],
        seen: Callable[[], None],
    ) -> None:
        self.limit = NEVER_NS
        self._env = env
        self._done = done
        self._seen = seen
        self._sound = NEVER_NS
        """The last iteration before the error; `NEVER_NS`: there is none."""
        self._errors = 0
        env.process(self._strike_all(corruptions))

    def loaded(self, iteration: int) -> None:
        """Take in what every rank has loaded: state from before the error ends it."""
        if iteration <= self._sound:
            self._sound = self.limit = NEVER_NS

    def _strike_all(self, corruptions: Iterable[Corruption]) -> Process:
        for one in corruptions:
            yield LateEvent(self._env, one.time_ns - int(self._env.now), SET_ASIDE)
            done = self._done()
            if self._sound == NEVER_NS and done >= 0:
                self._sound = done
                self._errors += 1
                self._env.process(self._show(one.seen_after_ns))

    def _show(self, after_ns: int) -> Process:
        error = self._errors
        yield LateEvent(self._env, after_ns, SET_ASIDE)
        if self._sound != NEVER_NS and self._errors == error:
            self.limit = self._sound
            self._seen()

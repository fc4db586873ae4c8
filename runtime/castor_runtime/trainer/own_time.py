"""How much of an iteration a rank takes itself, and how much it waits for others.

By the host's clock: an iteration is as long as it is, and every wait in a collective, for a
checkpoint, or in a busy section of the script is taken off. That costs two readings of the clock a
wait (benchmarks/collectives). Where a GPU does the work, its host does not wait in collectives: all
ranks then seem to take all of that time themselves, and none is told from the others by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Of some iterations.

    Attributes:
        iterations: how many.
        seconds: that they took together.
        own_s: of those, that this rank took itself.
    """

    iterations: int
    seconds: float
    own_s: float


class OwnTime:
    """Measures one rank, in the thread that trains.

    Args:
        waited_ns: returns for how long this process has waited in collectives, ever.
    """

    def __init__(self, waited_ns: Callable[[], int]) -> None:
        self._waited_ns = waited_ns
        self.begin()

    def begin(self) -> None:
        """Begin an iteration, the first of some; it touches memory, and does not count."""
        self._is_first = True
        self._others_ns = 0
        self._before_ns = self._waited_ns()
        self._iterations, self._seconds, self._own_s = 0, 0.0, 0.0

    @contextmanager
    def others(self) -> Iterator[None]:
        """Leave a time out, which is waited for others, or has its reason."""
        began_ns, waited_ns = time.monotonic_ns(), self._waited_ns()
        try:
            yield
        finally:
            # Collectives within it are taken off anyway.
            passed_ns = time.monotonic_ns() - began_ns - (self._waited_ns() - waited_ns)
            self._others_ns += max(0, passed_ns)

    def end_iteration(self, seconds: float) -> float:
        """Return how much of an iteration's time, which ends here, this rank took itself."""
        waited_ns = self._waited_ns()
        off_ns = waited_ns - self._before_ns + self._others_ns
        self._before_ns, self._others_ns = waited_ns, 0
        own_s = max(0.0, seconds - off_ns / 1e9)
        if self._is_first:
            self._is_first = False
        else:
            self._iterations += 1
            self._seconds += seconds
            self._own_s += own_s
        return own_s

    def take(self) -> Pace:
        """Return what the iterations since the last call, or since the beginning, were like."""
        taken = Pace(self._iterations, self._seconds, self._own_s)
        self._iterations, self._seconds, self._own_s = 0, 0.0, 0.0
        return taken

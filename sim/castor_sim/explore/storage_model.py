"""Persistent storage as a model: whole iterations, the newest few, seen by each machine or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from castor_sim.explore.checkpoint_model import Chunk, flipped
from castor_sim.explore.truth import Line


class Attempt:
    """One generation's attempt at persisting one iteration."""

    __slots__ = ("line", "parts", "set_aside")

    def __init__(self, line: Line) -> None:
        self.line = line
        self.parts: dict[int, tuple[list[Chunk], list[Chunk]]] = {}
        self.set_aside = False


class Storage:
    """What every machine that can see it has written.

    Args:
        ranks: parts of a whole iteration.
        keep: how many whole iterations are kept.
    """

    def __init__(self, ranks: int, keep: int) -> None:
        self.is_full = False
        self._ranks = ranks
        self._keep = keep
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._hidden: Counter[str] = Counter()

    # ---- faults --------------------------------------------------------------------------------

    def hide(self, machine: str) -> None:
        """Let a machine see nothing of it, as if it were not mounted there."""
        self._hidden[machine] += 1

    def show(self, machine: str) -> None:
        """Take one `hide` back."""
        self._hidden[machine] -= 1

    def sees(self, machine: str) -> bool:
        """Whether a machine reads and writes it."""
        return not self._hidden or self._hidden[machine] <= 0

    def flip(self, rank: int) -> bool:
        """Flip a byte of a part of the newest whole iteration; False if there is none."""
        whole = self._whole()
        if not whole:
            return False
        chunks, _ = self._newest(max(whole)).parts[rank]
        chunks[0] = flipped(chunks[0])
        return True

    # ---- machines ------------------------------------------------------------------------------

    def write(
        self, machine: str, key: tuple[int, int], rank: int, part: Sequence[Chunk], line: Line
    ) -> None:
        """Store a part; an attempt counts once it has them all.

        Args:
            machine: who writes.
            key: (iteration, generation).
            rank: whose part.
            part: its chunks.
            line: who trained it.
        """
        if self.is_full or not self.sees(machine):
            return
        attempt = self._attempts.setdefault(key, Attempt(line))
        attempt.parts[rank] = (list(part), list(part))
        for old in self._whole()[: -self._keep]:
            for other in [other for other in self._attempts if other[0] == old]:
                del self._attempts[other]

    def complete(self, machine: str) -> tuple[int, ...]:
        """Return the whole iterations that a machine sees, oldest first."""
        return self._whole() if self.sees(machine) else ()

    def read(self, machine: str, iteration: int, rank: int) -> tuple[list[Chunk], Line] | None:
        """Return a part of a whole iteration and who trained it; None if it cannot be read.

        A part that differs from its digests is set aside with all of its attempt.
        """
        if iteration not in self.complete(machine):
            return None
        attempt = self._newest(iteration)
        chunks, digests = attempt.parts[rank]
        if chunks != digests:
            attempt.set_aside = True
            return None
        return list(chunks), attempt.line

    def has(self, iteration: int, generation: int) -> bool:
        """Whether all shares of one attempt at an iteration are written."""
        attempt = self._attempts.get((iteration, generation))
        return attempt is not None and self._is_whole(attempt)

    def whole(self) -> tuple[int, ...]:
        """Return the whole iterations, oldest first, whoever sees them."""
        return self._whole()

    def _is_whole(self, attempt: Attempt) -> bool:
        return len(attempt.parts) == self._ranks and not attempt.set_aside

    def _whole(self) -> tuple[int, ...]:
        found = {
            iteration
            for (iteration, _), attempt in self._attempts.items()
            if len(attempt.parts) == self._ranks and not attempt.set_aside
        }
        return tuple(sorted(found))

    def _newest(self, iteration: int) -> Attempt:
        return max(
            (generation, attempt)
            for (number, generation), attempt in self._attempts.items()
            if number == iteration and len(attempt.parts) == self._ranks and not attempt.set_aside
        )[1]

"""Which of two uses of the same memory comes first: vector clocks, as race detectors have them.

An actor (a thread, or a stream of a GPU) counts what it does; its clock holds, for each actor, how
much of that one's doing comes before what it does next. Two uses of the same bytes, one of them a
write, must be ordered; whether they were in this run by luck does not count.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Clock:
    """How much of each actor's doing comes before; by the actor's name."""

    counts: dict[str, int] = field(default_factory=dict)

    def join(self, other: Clock) -> None:
        """Let all that comes before `other` come before this one too."""
        for actor, count in other.counts.items():
            if count > self.counts.get(actor, 0):
                self.counts[actor] = count

    def tick(self, actor: str) -> int:
        """Count one more of an actor; return its number."""
        self.counts[actor] = self.counts.get(actor, 0) + 1
        return self.counts[actor]

    def copy(self) -> Clock:
        """Return what it is now."""
        return Clock(dict(self.counts))


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes [low, high) that an actor read or wrote.

    Attributes:
        what: did it, in words.
        actor: its name.
        number: of what the actor did.
        low: first address.
        high: after the last one.
        writes: whether they changed.
    """

    what: str
    actor: str
    number: int
    low: int
    high: int
    writes: bool

    def comes_before(self, counts: Mapping[str, int]) -> bool:
        """Whether it is ordered before what has that clock."""
        return counts.get(self.actor, 0) >= self.number


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that a GPU would, some day, answer with wrong bytes or memory lost."""

    said: str

    def __str__(self) -> str:
        return self.said


class Uses:
    """All uses of memory so far, but those that cannot be in conflict with a later one.

    Attributes:
        faults: what was found.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._uses: list[Use] = []
        self._lock = threading.Lock()

    def add(self, use: Use, clock: Clock) -> None:
        """Take a use in, and find those before it that it is not ordered behind."""
        with self._lock:
            kept: list[Use] = []
            for one in self._uses:
                apart = one.high <= use.low or use.high <= one.low
                ordered = one.comes_before(clock.counts)
                if not apart and not ordered and (one.writes or use.writes):
                    self.faults.append(
                        Fault(
                            f"{use.what} on {use.actor} does not wait for {one.what} on "
                            f"{one.actor}, which uses the same memory"
                        )
                    )
                covered = use.low <= one.low and one.high <= use.high
                if not (covered and ordered and (use.writes or not one.writes)):
                    kept.append(one)
            self._uses = [*kept, use]

    def fault(self, said: str) -> None:
        """Note a fault of another kind; once."""
        with self._lock:
            if Fault(said) not in self.faults:
                self.faults.append(Fault(said))

"""How failures enter a simpy simulation: grouped by instant, and after all else of that instant."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import simpy
from simpy.events import Event as SimpyEvent
from simpy.events import EventPriority

from castor_sim.strikes import Strikes

Process = Generator[SimpyEvent, None, None]
Batch = tuple[int, list[tuple[int, int, int]]]

SET_ASIDE = EventPriority(2)
"""simpy's priorities are 0 (urgent) and 1 (normal); who is set aside goes after what ends."""

STRIKES_LAST = EventPriority(3)
"""Failures come after all of them."""

RUN_ENDS = EventPriority(4)


class LateEvent(SimpyEvent):
    """A timeout that is processed after all normal events of its instant."""

    def __init__(self, env: simpy.Environment, delay_ns: int, priority: EventPriority) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, priority=priority, delay=delay_ns)


def batches(strikes: Iterable[Strikes], horizon_ns: int) -> Iterator[Batch]:
    """Group the failures up to the horizon by instant: time, [(machine, hardware, restore)]."""
    time_ns = -1
    members: list[tuple[int, int, int]] = []
    for block in strikes:
        for at_ns, machine, hardware, restore_ns in _rows(block):
            if at_ns != time_ns:
                if members:
                    yield time_ns, members
                if at_ns > horizon_ns:
                    return
                time_ns, members = at_ns, []
            members.append((machine, hardware, restore_ns))
    if members:
        yield time_ns, members


def _rows(block: Strikes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the rows as Python's integers, few at a time: those take ten times the memory."""
    columns = (block.time_ns, block.machine, block.hardware, block.restore_ns)
    for start in range(0, len(block.time_ns), 1024):
        part = slice(start, start + 1024)
        yield from zip(*(column[part].tolist() for column in columns), strict=True)

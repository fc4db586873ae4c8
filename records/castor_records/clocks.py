"""Events of several hosts in the order in which they happened, though their clocks differ.

Every agent measures how far the clock of machine 0's agent is from its own, and says so in its log
(`ClockMeasured`). What an agent tells is moved by what it measured nearest in time; where machine
0's agent has changed, from one to the next. Two clocks that are closer than the measurement can
tell, those of one host above all, are taken for one: nothing is moved.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.storing import ClockMeasured

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Log:
    """What one process has told, by its own clock.

    Attributes:
        owner: name of the agent; "" is whoever tells by a clock that nobody has measured.
        entries: in order.
    """

    owner: str
    entries: Sequence[Entry[Event]]

    @classmethod
    def of_agent(cls, entries: Sequence[Entry[Event]]) -> Log:
        """Return the log of the agent that has measured its clock there; "" if none has.

        A log that was merged of several agents' has been put in order already: it has no owner.
        """
        owners = {entry.event.agent for entry in of_kind(entries, ClockMeasured)}
        return cls(owners.pop() if len(owners) == 1 else "", entries)


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far a clock is from the one that all are compared with.

    Attributes:
        offset_ns: to be added to its times; 0: it cannot be told apart from that one.
        uncertainty_ns: the true offset is no further from what was measured.
        reference: the agent whose clock that is.
    """

    offset_ns: int
    uncertainty_ns: int
    reference: str

    def to_json(self) -> dict[str, Any]:
        """Return it in seconds, as commands print it."""
        return {
            "offset_s": self.offset_ns / _NS_PER_S,
            "uncertainty_s": self.uncertainty_ns / _NS_PER_S,
            "reference": self.reference,
        }


@dataclass(slots=True)
class _Measured:
    """What one agent measured of another's clock, by time."""

    times_ns: list[int] = field(default_factory=list)
    found: list[ClockMeasured] = field(default_factory=list)

    def add(self, entry: Entry[ClockMeasured]) -> None:
        at = bisect_left(self.times_ns, entry.time_ns)
        self.times_ns.insert(at, entry.time_ns)
        self.found.insert(at, entry.event)

    def at(self, time_ns: int) -> ClockMeasured:
        after = bisect_left(self.times_ns, time_ns)
        near = [i for i in (after - 1, after) if 0 <= i < len(self.times_ns)]
        return self.found[min(near, key=lambda i: abs(self.times_ns[i] - time_ns))]


class Clocks:
    """What is known of the agents' clocks."""

    def __init__(self, entries: Iterable[Entry[Event]] = ()) -> None:
        self._measured: dict[tuple[str, str], _Measured] = {}
        self._ways: dict[str, list[str]] | None = None
        self.add(entries)

    def add(self, entries: Iterable[Entry[Event]]) -> None:
        """Take in what there is of measurements."""
        for entry in of_kind(entries, ClockMeasured):
            pair = entry.event.agent, entry.event.reference
            self._measured.setdefault(pair, _Measured()).add(entry)
            self._ways = None

    @property
    def reference(self) -> str:
        """The agent whose clock counts: the one that was compared with most; "" for none."""
        compared = Counter(reference for _, reference in self._measured)
        return min(compared, key=lambda name: (-compared[name], name), default="")

    def offset(self, agent: str, time_ns: int) -> ClockOffset | None:
        """Return how far an agent's clock was from the reference's; None: nobody measured it.

        Args:
            agent: its name.
            time_ns: when, by its own clock.
        """
        if self._ways is None:
            self._ways = self._find_ways()
        way = self._ways.get(agent)
        if way is None:
            return None
        offset_ns = uncertainty_ns = 0
        for here, there in itertools.pairwise(way):
            forth, back = self._measured.get((here, there)), self._measured.get((there, here))
            measured = (forth or back or _Measured()).at(time_ns)
            # What is within the uncertainty may as well be nothing.
            if abs(measured.offset_ns) > measured.uncertainty_ns:
                offset_ns += measured.offset_ns if forth else -measured.offset_ns
            uncertainty_ns += measured.uncertainty_ns
        return ClockOffset(offset_ns, uncertainty_ns, way[-1])

    def corrected(self, agent: str, entry: Entry[Event]) -> Entry[Event]:
        """Return an agent's entry with the time of the reference's clock."""
        offset = self.offset(agent, entry.time_ns)
        if offset is None or not offset.offset_ns:
            return entry
        return replace(entry, time_ns=entry.time_ns + offset.offset_ns)

    def _find_ways(self) -> dict[str, list[str]]:
        """Return for each agent those whose measurements lead to the reference, itself first."""
        beside: dict[str, set[str]] = {}
        for here, there in self._measured:
            beside.setdefault(here, set()).add(there)
            beside.setdefault(there, set()).add(here)
        ways = {self.reference: [self.reference]}
        ahead = deque([self.reference])
        while ahead:
            reached = ahead.popleft()
            for name in sorted(beside.get(reached, set()) - ways.keys()):
                ways[name] = [name, *ways[reached]]
                ahead.append(name)
        return ways


def told(logs: Sequence[Log]) -> list[tuple[str, Entry[Event]]]:
    """Return who told what, in order of time; at one instant, in the order of `logs`."""
    clocks = Clocks(entry for log in logs for entry in log.entries)
    entries = [
        (log.owner, clocks.corrected(log.owner, entry)) for log in logs for entry in log.entries
    ]
    return sorted(entries, key=lambda one: one[1].time_ns)


def in_order(logs: Sequence[Log]) -> list[Entry[Event]]:
    """Return the entries of all logs by time, clocks corrected; see `told`."""
    return [entry for _, entry in told(logs)]

"""How many machines of a trace are out of service, as a step function of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castor_traces.trace import Trace

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class MachinesDown:
    """Machines down over [0, span]: `down[i]` of them from `time_ns[i]` to the next time.

    Attributes:
        time_ns: instants of change, strictly increasing, the first is 0; the last step ends with
            the span.
        down: how many machines are down from then on.
        span_ns: the end.
        unknown_durations: failures left out because nobody says how long they lasted.
    """

    time_ns: Integers
    down: Integers
    span_ns: int
    unknown_durations: int

    @property
    def mean(self) -> float | None:
        """The mean over time; None for a span of zero."""
        if self.span_ns == 0:
            return None
        lengths = np.diff(np.append(self.time_ns, self.span_ns))
        # Python integers: machine-nanoseconds of a long trace pass 2^63.
        total = sum(
            length * down for length, down in zip(lengths.tolist(), self.down.tolist(), strict=True)
        )
        return float(total / self.span_ns)

    @property
    def maximum(self) -> int:
        """The most at one time; a fault of zero length takes no machine down."""
        return int(self.down.max())


def machines_down(trace: Trace) -> MachinesDown:
    """Count the machines that are down at each time, each machine once.

    Overlapping and touching faults of one machine are united; a fault is down over [start, end) and
    cut at the end of the span. A failure of "any" machine counts as a machine of its own.
    """
    arrays = trace.arrays()
    known = arrays.duration_ns >= 0
    start = arrays.time_ns[known]
    # start + duration may pass 2^63: the room left to the end of the span cuts it first.
    end = start + np.minimum(arrays.duration_ns[known], trace.span_ns - start)
    machine = arrays.machine[known].astype(np.int64)
    nameless = np.flatnonzero(machine < 0)
    machine[nameless] = trace.machines + np.arange(len(nameless))
    lasting = end > start
    start, end, machine = start[lasting], end[lasting], machine[lasting]
    order = np.lexsort((end, start, machine))
    begins, ends = _united(start[order], end[order], machine[order])
    times = np.concatenate([np.zeros(1, dtype=np.int64), begins, ends])
    change = np.concatenate([[0], np.ones(len(begins)), -np.ones(len(ends))]).astype(np.int64)
    instants, inverse = np.unique(times, return_inverse=True)
    steps = np.zeros(len(instants), dtype=np.int64)
    np.add.at(steps, inverse, change)
    return MachinesDown(instants, np.cumsum(steps), trace.span_ns, int(np.count_nonzero(~known)))


def _united(start: Integers, end: Integers, machine: Integers) -> tuple[Integers, Integers]:
    """Unite overlapping intervals of one machine; sorted by machine and start."""
    begins: list[int] = []
    ends: list[int] = []
    current = -1
    rows = zip(start.tolist(), end.tolist(), machine.tolist(), strict=True)
    for start_ns, end_ns, number in rows:
        if number == current and start_ns <= ends[-1]:
            ends[-1] = max(ends[-1], end_ns)
        else:
            begins.append(start_ns)
            ends.append(end_ns)
            current = number
    return np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)

"""When each fault of a run is due: pure, so that it can be tested without a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from castor_lab.faults.fault import (
    AtIteration,
    AtRecovery,
    AtTime,
    Fault,
    FaultKind,
    Now,
)
from castor_records.events.event import Event
from castor_records.events.failures import Detected
from castor_records.events.training import IterationEnded

if TYPE_CHECKING:
    from castor_traces.trace import Trace

_NS_PER_S = 1_000_000_000


class FaultSchedule:
    """The faults of one run that are still to come."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._waiting = list(faults)
        self._reached = 0
        self._first_iteration_s: float | None = None
        self._first_detection_s: float | None = None

    @property
    def waiting(self) -> tuple[Fault, ...]:
        """The faults that have not become due."""
        return tuple(self._waiting)

    def add(self, fault: Fault) -> None:
        """Schedule one more."""
        self._waiting.append(fault)

    def saw(self, event: Event, now_s: float) -> None:
        """Take in what happened; `now_s` is the clock that `due` is asked with."""
        if isinstance(event, IterationEnded):
            self._reached = max(self._reached, event.iteration)
            if self._first_iteration_s is None:
                self._first_iteration_s = now_s
        elif isinstance(event, Detected) and self._first_detection_s is None:
            self._first_detection_s = now_s

    def due(self, now_s: float) -> list[Fault]:
        """Return the faults that are due and forget them, in the order they were given."""
        due = [fault for fault in self._waiting if self._is_due(fault, now_s)]
        self._waiting = [fault for fault in self._waiting if fault not in due]
        return due

    def _is_due(self, fault: Fault, now_s: float) -> bool:
        match fault.when:
            case Now():
                return True
            case AtIteration(iteration):
                return self._reached >= iteration
            case AtRecovery(delay_s):
                began_s = self._first_detection_s
                return began_s is not None and now_s >= began_s + delay_s
            case AtTime(after_s):
                began_s = self._first_iteration_s
                return began_s is not None and now_s >= began_s + after_s


def faults_of_trace(trace: Trace, speedup: float, machines: int, ranks: int) -> list[Fault]:
    """Turn a failure trace into faults: software kills a trainer, hardware a machine.

    Time 0 of the trace is the end of the run's first iteration, and its time passes `speedup`
    times faster. Machine numbers wrap around at `machines`; failures of "any" machine go round.
    Which of a machine's `ranks` trainers is killed goes round too.

    Raises:
        ValueError: the speed-up is not above 0.
    """
    if speedup <= 0:
        raise ValueError(f"the speed-up must be above 0, not {speedup:g}")
    faults = []
    for index, failure in enumerate(trace.failures):
        machine = (index if failure.machine is None else failure.machine) % machines
        hardware = failure.kind == "hardware"
        faults.append(
            Fault(
                kind=FaultKind.MACHINE if hardware else FaultKind.RANK,
                targets=(machine if hardware else machine * ranks + index % ranks,),
                when=AtTime(failure.time_ns / _NS_PER_S / speedup),
                cause=failure.cause or f"{trace.name} at {failure.time_ns / _NS_PER_S:g} s",
            )
        )
    return faults

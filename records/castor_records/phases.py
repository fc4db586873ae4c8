"""The phases of an outage, from the failure until training goes on: one list for both twins."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """What passes between a failure and training, in the order in which it happens.

    A real run's phases follow each other from the start of the outage and add up to its total;
    `castor_records.recoveries` says from which event to which each lasts. A simulated job begins
    anew with the detection where another failure strikes it.
    """

    DETECTION = "detection"
    """Nobody knows yet that something failed."""
    INTERRUPTED = "interrupted"
    """Attempts that another failure ended, up to the last detection; real runs only."""
    SERIALISATION = "serialisation"
    """What lies in memory is written where it outlives the trainers; simulated only."""
    REPLACEMENT = "replacement"
    """Until every lost machine is replaced. Simulated: planning takes no time of its own."""
    PLANNING = "planning"
    """Until it is decided what to load; real runs only."""
    RETRIEVAL = "retrieval"
    """Until every rank's part is in its machine's memory."""
    RESTART = "restart"
    """Until every rank trains."""
    FIRST_ITERATION = "first_iteration"
    """Until rank 0 has ended an iteration; real runs only: the simulator counts it as training."""

    @property
    def simulated(self) -> str:
        """What tables, timelines and pictures of simulated runs call the phase."""
        return _SIMULATED.get(self, self.value)


_SIMULATED: Final = {
    Phase.INTERRUPTED: "detection",
    Phase.REPLACEMENT: "replacement_wait",
    Phase.PLANNING: "replacement_wait",
    Phase.RESTART: "warm_up",
    Phase.FIRST_ITERATION: "training",
}

MEASURED: Final = tuple(phase for phase in Phase if phase != Phase.SERIALISATION)
"""Those of a real outage."""


@dataclass(frozen=True, slots=True)
class Span:
    """The job was in `phase` from `start_ns` to `end_ns`."""

    phase: str
    start_ns: int
    end_ns: int

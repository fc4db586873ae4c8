"""What advice comes to: candidates, what they were compared with, and the recommendation."""

from __future__ import annotations

from dataclasses import dataclass

from castor_analysis.advice.case import Case
from castor_analysis.advice.model import YEAR_S, Standbys, StorageInterval
from castor_analysis.summary import Interval, Summary
from castor_configs.readable import exact_seconds
from castor_policy.placement import Placement
from castor_sim.experiment import Experiment
from castor_sim.job import NS_PER_S


@dataclass(frozen=True, slots=True)
class Candidate:
    """Checkpoints in memory with one number of replicas in one placement.

    Attributes:
        replicas: m.
        kind: the placement's name in an experiment.
        placement: where the copies are.
        every: period of memory checkpoints in iterations, as `--checkpoint-every` has it.
        traffic_s: time to send m - 1 copies of a machine's shard.
        memory_bytes: CPU memory that they take on a machine.
        fits: whether that is within the budget.
        window_s: from the loss of a machine until all replicas are back in place.
        losses_per_s: how often all copies of a shard are lost at once.
        racks_survived: the share of the domains whose loss leaves a copy of every shard; None
            where the cluster does not say what fails together.
        storage: how often to write to storage.
    """

    replicas: int
    kind: str
    placement: Placement
    every: int
    traffic_s: float
    memory_bytes: int
    fits: bool
    window_s: float
    losses_per_s: float
    racks_survived: float | None
    storage: StorageInterval

    @property
    def losses_per_year(self) -> float:
        """Expected losses of all copies of a shard in 365 days."""
        return self.losses_per_s * YEAR_S

    @property
    def table(self) -> dict[str, object]:
        """The candidate as a strategy of an experiment."""
        return {
            "kind": "gemini",
            "every": self.every,
            "update_after": "replication",
            "persist_every": exact_seconds(round(self.storage.chosen_s * NS_PER_S)),
            "serialise": "0s",
            "replicas": self.replicas,
            "placement": self.kind,
        }


@dataclass(frozen=True, slots=True)
class Alternative:
    """Something else that could be done, simulated against the same failures.

    Attributes:
        name: in a few words.
        candidate: the memory tier; None: checkpoints to storage alone.
        standbys: machines kept ready.
        persist_every_s: the storage interval.
        summary: what the simulation came to.
        chosen: whether it is the recommendation.
    """

    name: str
    candidate: Candidate | None
    standbys: int
    persist_every_s: float
    summary: Summary
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommendation and what it rests on.

    Attributes:
        case: what was asked.
        candidate: the memory tier to use; None: memory does not hold even one replica.
        candidates: the best one for each number of replicas.
        standbys: machines to keep ready: as many as make useful work cheapest in simulation.
        closed_form: what the closed forms say about their number.
        persist_every_s: the storage interval.
        ratio: expected effective training time ratio of the recommendation.
        alternatives: what it was compared with, the recommendation among them.
        experiment: ready to be written and simulated.
    """

    case: Case
    candidate: Candidate | None
    candidates: tuple[Candidate, ...]
    standbys: int
    closed_form: Standbys
    persist_every_s: float
    ratio: Interval
    alternatives: tuple[Alternative, ...]
    experiment: Experiment

"""A fault schedule drawn from a seed, and what must come of it; pure, so that seeds replay.

Whatever fails, a run must end with the right state: it may have to begin anew. Beyond that, where
every shard keeps a replica through every fault and all that follows it closely, nothing but the
iteration in flight may be lost.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from castor_lab.faults.fault import AtIteration, AtRecovery, AtTime, Fault, FaultKind, When
from castor_policy.placement import Placement

APART: Final = 3
"""Faults at iterations so far apart do not add up: the later iteration ends only after redundancy
is back, for no checkpoint begins before, and the second iteration ends only after the first's."""

_WEIGHTS: Final = {
    FaultKind.MACHINE: 5,
    FaultKind.RANK: 4,
    FaultKind.AGENT: 3,
    FaultKind.ROOT: 2,
    FaultKind.STORE: 2,
    FaultKind.FLIP: 2,
    FaultKind.STOP: 2,
    FaultKind.AGENTSTOP: 1,
}
_LATER_WEIGHTS: Final = {
    FaultKind.FORKSTOP: 3,
    FaultKind.WIPE: 3,
    FaultKind.STORAGEHANG: 2,
    FaultKind.STORAGEFULL: 2,
    FaultKind.TWIN: 3,
    FaultKind.STRANGER: 2,
}
"""Drawn from a stream of their own, so that a seed keeps what it drew before these were known."""
_LATER_SHARE: Final = 0.5
"""Of the seeds: these have one of them, beside what else they draw."""
_FAULTS_MAX = 4
_OUTAGES_S = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a seed stands for.

    Attributes:
        seed: it.
        faults: in the order in which they were drawn.
        memory_survives: every shard keeps a replica in memory, whatever the timing.
    """

    seed: int
    faults: tuple[Fault, ...]
    memory_survives: bool

    def __str__(self) -> str:
        """Return the options of `castor train` that inject it."""
        return " ".join(f"--kill {fault}" for fault in self.faults)


def draw(seed: int, placement: Placement, ranks_per_machine: int, iterations: int) -> Schedule:
    """Draw 1 to 4 faults, and for half of the seeds one more: kinds, targets and moments.

    Args:
        seed: the same seed and shape give the same schedule, on every machine.
        placement: of the job.
        ranks_per_machine: trainers on each machine.
        iterations: of the run; faults come early enough to be recovered from.

    Raises:
        ValueError: too few iterations for a fault and what follows it.
    """
    if iterations < 3 * APART:
        raise ValueError(f"a run of {iterations} iterations is too short; use {3 * APART} or more")
    rng = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    count = rng.randint(1, _FAULTS_MAX)
    faults: list[Fault] = []
    for index in range(count):
        kinds = [kind for kind in _WEIGHTS if kind != FaultKind.STORE or _has_no_store(faults)]
        kind = rng.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0]
        when = _moment(rng, iterations, first=index == 0)
        targets = _targets(rng, kind, placement.machines, ranks_per_machine)
        outage_s = rng.choice(_OUTAGES_S)
        faults.append(Fault(kind=kind, targets=targets, when=when, outage_s=outage_s))
    faults += _later(seed, faults, placement.machines, ranks_per_machine, iterations)
    return Schedule(seed, tuple(faults), survives_in_memory(faults, placement))


def _later(
    seed: int, faults: Sequence[Fault], machines: int, ranks_per_machine: int, iterations: int
) -> list[Fault]:
    """Draw none or one of the kinds that came later."""
    rng = random.Random(f"later {seed}")  # noqa: S311 - a schedule, not a secret
    if rng.random() >= _LATER_SHARE:
        return []
    kind = rng.choices(list(_LATER_WEIGHTS), list(_LATER_WEIGHTS.values()))[0]
    when = AtIteration(rng.randint(2, iterations - APART))
    outage_s = rng.choice(_OUTAGES_S)
    machine = rng.randrange(machines)
    if kind == FaultKind.WIPE and not _has_no_store(faults):
        kind = FaultKind.FORKSTOP
    if kind == FaultKind.TWIN:
        # Of an agent that dies meanwhile the name is free, and a second one may well have it.
        spared = set(range(machines)) - _machines_of(faults, ranks_per_machine)
        if not spared or any(fault.kind == FaultKind.ROOT for fault in faults):
            kind = FaultKind.STRANGER
        else:
            machine = rng.choice(sorted(spared))
    targets = (machine,) if kind in (FaultKind.FORKSTOP, FaultKind.TWIN) else ()
    return [Fault(kind=kind, targets=targets, when=when, outage_s=outage_s)]


def _machines_of(faults: Sequence[Fault], ranks_per_machine: int) -> set[int]:
    of_ranks = (FaultKind.RANK, FaultKind.STOP)
    return {
        int(target) // ranks_per_machine if fault.kind in of_ranks else int(target)
        for fault in faults
        for target in fault.targets
    }


def _has_no_store(faults: Sequence[Fault]) -> bool:
    """One outage of the store a run: a second one might begin before the first has ended."""
    return all(fault.kind != FaultKind.STORE for fault in faults)


def _moment(rng: random.Random, iterations: int, *, first: bool) -> When:
    # A recovery comes only after another fault; which one is first by time is not known here.
    kind = rng.choices(("iteration", "time", "recovery"), (6, 1, 0 if first else 3))[0]
    if kind == "recovery":
        return AtRecovery(round(rng.choice((0.0, rng.uniform(0, 4))), 1))
    if kind == "time":
        return AtTime(round(rng.uniform(0, 2), 1))
    return AtIteration(rng.randint(2, iterations - APART))


def _targets(
    rng: random.Random, kind: FaultKind, machines: int, ranks_per_machine: int
) -> tuple[int, ...]:
    if kind in (FaultKind.ROOT, FaultKind.STORE):
        return ()
    if kind in (FaultKind.RANK, FaultKind.STOP):
        return (rng.randrange(machines * ranks_per_machine),)
    count = 2 if kind == FaultKind.MACHINE and rng.random() < 0.25 else 1
    return tuple(sorted(rng.sample(range(machines), count)))


def survives_in_memory(faults: Sequence[Fault], placement: Placement) -> bool:
    """Say whether every shard keeps a replica through `faults`, whatever their timing.

    Faults count as one where they are not `APART`. The root may be on any machine, and the agent
    that is stopped loses its machine.
    """
    spoiling = [fault for fault in faults if fault.kind in _SPOILS]
    for fault in spoiling:
        together = [other for other in spoiling if _close(fault, other)]
        roots = sum(other.kind == FaultKind.ROOT for other in together)
        lost = {machine for other in together for machine in other.targets}
        for row in placement.replicas:
            if len(row) <= len(lost.intersection(row)) + roots:
                return False
    return True


_SPOILS = (
    FaultKind.MACHINE,
    FaultKind.ROOT,
    FaultKind.FLIP,
    FaultKind.AGENTSTOP,
    FaultKind.FORKSTOP,
)


def _close(one: Fault, other: Fault) -> bool:
    if isinstance(one.when, AtIteration) and isinstance(other.when, AtIteration):
        # A stopped agent is found only by its lease, and many iterations may end meanwhile.
        slow = not {FaultKind.AGENTSTOP, FaultKind.FORKSTOP}.isdisjoint((one.kind, other.kind))
        return slow or abs(one.when.iteration - other.when.iteration) < APART
    return True

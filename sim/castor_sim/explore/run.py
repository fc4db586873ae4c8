"""Run one schedule, or one seed's, and make what it found as small as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from castor_sim.explore.broken import BROKEN
from castor_sim.explore.monitor import Violation
from castor_sim.explore.schedule import KINDS, Fault, draw_faults
from castor_sim.explore.variant import RIGHT, Variant
from castor_sim.explore.world import Shape, World


@dataclass(frozen=True, slots=True)
class Found:
    """A violation and the schedule that leads to it.

    Attributes:
        seed: of delays and chances; with `faults` it replays.
        invariant: number in `monitor.INVARIANTS`.
        text: what was seen.
        faults: the schedule.
    """

    seed: int
    invariant: int
    text: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Search:
    """What is explored; one value for all seeds.

    Attributes:
        shape: of the job.
        kinds: of faults.
        broken: name in `broken.BROKEN`, "" for the right code.
    """

    shape: Shape = field(default_factory=Shape)
    kinds: tuple[str, ...] = tuple(KINDS)
    broken: str = ""

    def faults(self, seed: int) -> tuple[Fault, ...]:
        """Return the seed's schedule."""
        shape = self.shape
        ranks = shape.machines * shape.ranks_per_machine
        return draw_faults(seed, self.kinds, shape.machines + shape.standby, ranks)

    def variant(self) -> Variant:
        """Return the code that is explored."""
        return BROKEN[self.broken] if self.broken else RIGHT


def run_schedule(search: Search, seed: int, faults: Sequence[Fault]) -> Found | None:
    """Run one schedule; return the violation that it leads to, None if there is none."""
    world = World(search.shape, seed, faults, search.variant())
    try:
        world.run()
    except Violation as violation:
        return Found(seed, violation.invariant, str(violation), tuple(faults))
    return None


def run_seed(search: Search, seed: int) -> Found | None:
    """Run the schedule that a seed stands for."""
    return run_schedule(search, seed, search.faults(seed))


def notes_of(search: Search, found: Found) -> list[str]:
    """Run a schedule again and return what happened, a line each."""
    world = World(search.shape, found.seed, found.faults, search.variant(), keep_notes=True)
    try:
        world.run()
    except Violation as violation:
        world.note(str(violation))
    return world.notes or []


def shrink(search: Search, found: Found) -> Found:
    """Return the violation of the same invariant with no fault that it can do without.

    Delta debugging over the list of faults (Zeller and Hildebrandt, 2002), down to one at a time;
    then each fault is made as plain as it can be. Every step is run again.
    """

    def leads_there(faults: Sequence[Fault]) -> Found | None:
        again = run_schedule(search, found.seed, faults)
        return again if again is not None and again.invariant == found.invariant else None

    smallest = _without_needless(found, leads_there)
    for index, fault in enumerate(smallest.faults):
        for plainer in _plainer(fault):
            faults = list(smallest.faults)
            faults[index] = plainer
            again = leads_there(faults)
            if again is not None:
                smallest = again
                break
    return smallest


def _without_needless(
    found: Found, leads_there: Callable[[Sequence[Fault]], Found | None]
) -> Found:
    smallest, parts = found, 2
    while smallest.faults:
        faults = smallest.faults
        size = -(-len(faults) // parts)
        for begin in range(0, len(faults), size):
            again = leads_there(faults[:begin] + faults[begin + size :])
            if again is not None:
                smallest, parts = again, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(faults), parts * 2)
    return smallest


def _plainer(fault: Fault) -> list[Fault]:
    """Return simpler forms of a fault, the simplest first."""
    forms = [
        replace(fault, after="", lag_s=0.0, time_s=round(fault.time_s, 1)),
        replace(fault, time_s=round(fault.time_s, 1), span_s=round(fault.span_s)),
        replace(fault, time_s=round(fault.time_s, 1)),
    ]
    return [form for form in forms if form != fault]


def run_seeds(search: Search, seeds: Sequence[int]) -> list[Found]:
    """Run some seeds' schedules and return the violations; a function of a module, for workers."""
    found = (run_seed(search, seed) for seed in seeds)
    return [violation for violation in found if violation is not None]

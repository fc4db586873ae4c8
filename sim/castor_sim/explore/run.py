"""Run one schedule, or one seed's, and make what it found as small as it goes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import castor_policy
from castor_sim.explore.broken import BROKEN
from castor_sim.explore.draw import draw_faults
from castor_sim.explore.invariants import INVARIANTS, Violation
from castor_sim.explore.journals import Journals
from castor_sim.explore.reached import Reached
from castor_sim.explore.schedule import KINDS, WISHES, Fault
from castor_sim.explore.variant import RIGHT, Variant
from castor_sim.explore.world import Shape, World, drawn_shape

CRASHED = 0
"""Stands for the number of an invariant where the explorer itself failed."""


@dataclass(frozen=True, slots=True)
class Found:
    """A violation and the schedule that leads to it.

    Attributes:
        seed: of delays and chances; with `faults` it replays.
        invariant: number in `invariants.INVARIANTS`, or `CRASHED`.
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
        shape: of the job; None: drawn by each seed.
        kinds: of faults.
        broken: name in `broken.BROKEN`, "" for the right code.
        coverage: note which branches of the policy are reached.
        journal: a folder that gets what every agent takes in, by seed; "": none does.
    """

    shape: Shape | None = None
    kinds: tuple[str, ...] = tuple(KINDS)
    broken: str = ""
    coverage: bool = False
    journal: str = ""

    def faults(self, seed: int) -> tuple[Fault, ...]:
        """Return the seed's schedule."""
        shape = self.shape_of(seed)
        ranks = shape.machines * shape.ranks_per_machine
        asks = not self.broken or self.variant().asks
        kinds = [kind for kind in self.kinds if asks or kind not in WISHES]
        return draw_faults(seed, kinds, shape.machines + shape.standby, ranks)

    def shape_of(self, seed: int) -> Shape:
        """Return the size of the seed's job."""
        return self.shape if self.shape is not None else drawn_shape(seed)

    def journals_of(self, seed: int) -> Path:
        """Return the folder for the journals of one seed's run."""
        return Path(self.journal) / f"seed-{seed}"

    def variant(self) -> Variant:
        """Return the code that is explored."""
        return BROKEN[self.broken] if self.broken else RIGHT


def run_schedule(
    search: Search, seed: int, faults: Sequence[Fault], journals: Journals | None = None
) -> Found | None:
    """Run one schedule; return the violation that it leads to, None if there is none."""
    return _run(search, World(search.shape_of(seed), seed, faults, journals=journals), faults)


def run_journaled(search: Search, seed: int, faults: Sequence[Fault]) -> Found | None:
    """Run one schedule as `run_schedule` does, and write all journals into the search's folder."""
    journals = Journals()
    found = run_schedule(search, seed, faults, journals)
    journals.write(search.journals_of(seed))
    return found


def _run(search: Search, world: World, faults: Sequence[Fault]) -> Found | None:
    try:
        with search.variant().planted():
            world.run()
    except Violation as violation:
        return Found(world.seed, violation.invariant, str(violation), tuple(faults))
    except Exception as error:  # noqa: BLE001 - told with the schedule that leads to it
        invariant = CRASHED
        if _is_in_policy(error):
            invariant = 21 if isinstance(error, AssertionError) else 16
        return Found(world.seed, invariant, _described(invariant, error), tuple(faults))
    return None


def _is_in_policy(error: Exception) -> bool:
    """Whether the explored code raised it, and not what is around it."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    return Path(innermost.filename).is_relative_to(Path(castor_policy.__file__).parent)


def _described(invariant: int, error: Exception) -> str:
    where = "".join(traceback.format_exception(error)[-3:]).strip()
    if invariant == CRASHED:
        return f"the explorer itself failed; please report it:\n{where}"
    return f"invariant {invariant} ({INVARIANTS[invariant]}):\n{where}"


def run_seed(search: Search, seed: int) -> Found | None:
    """Run the schedule that a seed stands for."""
    return run_schedule(search, seed, search.faults(seed))


def notes_of(search: Search, found: Found) -> list[str]:
    """Run a schedule again and return what happened, a line each."""
    world = World(search.shape_of(found.seed), found.seed, found.faults, keep_notes=True)
    again = _run(search, world, found.faults)
    if again is not None:
        world.note(again.text)
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


@dataclass(slots=True)
class Explored:
    """What came of some seeds.

    Attributes:
        found: the violations.
        reached: pairs of faults and, if the search asks for it, branches of the policy.
    """

    found: list[Found] = field(default_factory=list)
    reached: Reached = field(default_factory=Reached)


def run_seeds(search: Search, seeds: Sequence[int]) -> Explored:
    """Run some seeds' schedules; a function of a module, for workers."""
    explored = Explored()
    watching = explored.reached.tracing() if search.coverage else nullcontext()
    with watching:
        for seed in seeds:
            faults = search.faults(seed)
            journals = Journals() if search.journal else None
            world = World(search.shape_of(seed), seed, faults, journals=journals)
            violation = _run(search, world, faults)
            if journals is not None:
                journals.write(search.journals_of(seed))
            if violation is not None:
                explored.found.append(violation)
            explored.reached.struck(world.struck())
    return explored

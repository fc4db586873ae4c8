"""Replications of an experiment: the same integers with any engine and any number of jobs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from enum import StrEnum
from itertools import islice, repeat

from castor_records.events.event import Entry, Event
from castor_sim import jump_engine
from castor_sim.exact_engine import ExactEngine
from castor_sim.setup import Setup
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.tally import Tally


class Engine(StrEnum):
    """Three engines of one model."""

    JUMP = "jump"
    """Compiled, from failure to failure: for replications and sweeps."""
    SIMPY = "simpy"
    """simpy processes; between failures closed form. Writes the event log."""
    EXACT = "exact"
    """simpy processes with every iteration and chunk simulated: the oracle."""


def run_once(
    setup: Setup,
    strategy: str,
    seed: int,
    engine: Engine = Engine.JUMP,
    observe: Callable[[Entry[Event]], None] | None = None,
) -> Tally:
    """Run one replication of one strategy.

    Args:
        setup: the resolved experiment.
        strategy: its name in the experiment.
        seed: of this replication.
        engine: which engine.
        observe: called with each event; the simpy engines only.

    Raises:
        ValueError: `observe` with the jump engine, which has no events to show, or what it does
            not know, slow machines and silent errors (`engine_for`).
    """
    if engine == Engine.JUMP:
        if setup.has_troubles:
            raise ValueError("the jump engine knows failures alone; use the simpy engine")
        if observe is not None:
            raise ValueError("the jump engine shows no events; use the simpy engine")
        return jump_engine.run(
            setup.costs[strategy],
            setup.operations_of(strategy),
            jump_engine.replica_array(setup.placement(strategy, seed).replicas),
            setup.strikes(seed),
            horizon_ns=setup.horizon_ns,
            target_iterations=setup.target_iterations,
        )
    kind = ExactEngine if engine == Engine.EXACT else SimpyEngine
    return kind(
        setup.costs[strategy],
        setup.operations_of(strategy),
        setup.placement(strategy, seed).replicas,
        setup.strikes(seed),
        horizon_ns=setup.horizon_ns,
        target_iterations=setup.target_iterations,
        observe=observe,
        troubles=setup.troubles(seed),
    ).run()


def engine_for(setup: Setup, wanted: Engine = Engine.JUMP) -> Engine:
    """Return the engine that runs an experiment: the wanted one, if that knows all of it."""
    return Engine.SIMPY if wanted == Engine.JUMP and setup.has_troubles else wanted


def seeds_of(setup: Setup) -> range:
    """Return the seeds of the experiment's replications."""
    first = setup.experiment.seed
    return range(first, first + setup.experiment.seeds)


def _replicate(setup: Setup, strategy: str, seed: int, engine: Engine) -> tuple[str, int, Tally]:
    return strategy, seed, run_once(setup, strategy, seed, engine)


def replications(
    setup: Setup, engine: Engine = Engine.JUMP, jobs: int = 1
) -> Iterator[tuple[str, int, Tally]]:
    """Yield (strategy, seed, tally) for all strategies and seeds, in that order.

    The jump engine leaves the GIL, so its jobs are threads; the simpy engines' are processes.
    """
    work = ((name, seed) for name in setup.costs for seed in seeds_of(setup))
    if jobs <= 1:
        for name, seed in work:
            yield _replicate(setup, name, seed, engine)
        return
    pool: Executor
    if engine == Engine.JUMP:
        pool = ThreadPoolExecutor(jobs)
    else:
        # Forked children would inherit the locks of numba's and matplotlib's threads.
        pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    with pool:
        # A window of work at a time: a pool takes all that it is given into memory at once.
        while window := list(islice(work, 16 * jobs)):
            names, seeds = zip(*window, strict=True)
            yield from pool.map(_replicate, repeat(setup), names, seeds, repeat(engine))

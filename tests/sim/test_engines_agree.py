"""The three engines are one model: the same integers out for random configurations."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy.placement import place
from castor_sim import jump_engine
from castor_sim.corruption import Corruption
from castor_sim.exact_engine import ExactEngine
from castor_sim.pace import Slowdown
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.strategy_costs import StrategyCosts, check_costs
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations
from castor_sim.troubles import Troubles


def strikes_of(rows: list[tuple[int, int, int, int]], blocks: int = 1) -> list[Strikes]:
    """Sort rows of (time_ns, machine, hardware, restore_ns) and cut them into blocks."""
    rows = sorted(rows, key=lambda row: row[0])
    cut = max(1, -(-len(rows) // blocks))
    parts = [rows[i : i + cut] for i in range(0, len(rows), cut)]
    return [
        Strikes(
            np.array([row[0] for row in part], np.int64),
            np.array([row[1] for row in part], np.int32),
            np.array([row[2] for row in part], np.int8),
            np.array([row[3] for row in part], np.int64),
        )
        for part in parts
    ]


# Small numbers on purpose: ties between failures, phases and arrivals are then common.
small = st.integers(0, 12)


@st.composite
def profiles(draw: st.DrawFn) -> StrategyCosts:
    iteration = draw(st.integers(1, 9))
    memory_every = draw(st.sampled_from([0, 1, 1, 2, 3]))
    storage_every = draw(st.sampled_from([0, 1, 3, 4, 7]))
    profile = StrategyCosts(
        iteration_ns=iteration,
        memory_every=memory_every,
        memory_stall_ns=draw(st.integers(0, 3)),
        memory_transfer_ns=draw(st.integers(0, memory_every * iteration)),
        storage_every=storage_every,
        storage_stall_ns=draw(st.integers(0, 5)),
        storage_transfer_ns=draw(st.integers(0, storage_every * iteration)),
        serialise_ns=draw(small),
        retrieve_own_ns=draw(small),
        retrieve_peer_ns=draw(small),
        retrieve_storage_ns=draw(small),
        replicate_ns=draw(small),
        warm_up_ns=draw(small),
        memory_in_trainer=draw(st.integers(0, 1)),
        in_place=draw(st.sampled_from([0, 1, 1])),
        warm_up_in_place_ns=draw(small),
        warm_up_alone_ns=draw(small),
        warm_spares=draw(st.integers(0, 1)),
        spare_build_ns=draw(small),
    )
    check_costs(profile)
    return profile


@st.composite
def runs(draw: st.DrawFn) -> dict:
    positions = draw(st.integers(1, 7))
    replicas = draw(st.integers(1, min(3, positions)))
    fleet = draw(st.sampled_from([0, 0, positions, positions + 1, positions + 3]))
    operations = Operations(
        positions=positions,
        fleet=fleet,
        standbys=draw(st.integers(0, 3)),
        dedicated=draw(st.integers(0, 1)),
        activation_ns=draw(st.integers(0, 4)),
        heartbeat_ns=draw(st.integers(1, 3)),
        poll_ns=draw(st.integers(1, 5)),
        misses=draw(st.sampled_from([0, 1, 3])),
        exit_ns=draw(st.sampled_from([-1, 0, 2])),
        unreached_ns=draw(st.sampled_from([-1, 0, 2])),
    )
    horizon = draw(st.integers(1, 600))
    failure = st.tuples(
        st.integers(0, horizon),
        st.integers(0, max(fleet, positions) - 1),
        st.integers(0, 1),
        st.integers(0, 60),
    )
    return {
        "costs": draw(profiles()),
        "operations": operations,
        "replicas": place(draw(st.sampled_from(["group", "ring"])), positions, replicas).replicas,
        "strikes": strikes_of(draw(st.lists(failure, max_size=25)), draw(st.integers(1, 4))),
        "horizon_ns": horizon,
        "target_iterations": draw(st.sampled_from([0, 0, 1, 20])),
    }


def outcome(engine: type[SimpyEngine], run: dict) -> tuple[dict[str, int], list[int]]:
    simulation = engine(**run, record_sources=True)
    tally = simulation.run()
    return tally.as_dict(), simulation.sources or []


def jump_outcome(run: dict) -> tuple[dict[str, int], list[int]]:
    sources: list[int] = []
    replicas = jump_engine.replica_array(run["replicas"])
    rest = {key: run[key] for key in run if key not in ("replicas",)}
    tally = jump_engine.run(**rest, replicas=replicas, sources=sources)
    return tally.as_dict(), sources


@settings(max_examples=6 * settings.default.max_examples)
@given(runs())
def test_the_three_engines_agree_to_the_nanosecond(run: dict) -> None:
    expected = outcome(ExactEngine, run)
    assert outcome(SimpyEngine, run) == expected
    assert jump_outcome(run) == expected


@st.composite
def troubled_runs(draw: st.DrawFn) -> dict:
    run = draw(runs())
    machines = max(run["operations"].fleet, run["operations"].positions)
    slowdown = st.builds(
        Slowdown,
        time_ns=st.integers(0, run["horizon_ns"]),
        machine=st.integers(0, machines - 1),
        # Halves and fifths make ends of iterations and changes of pace fall together.
        speed=st.sampled_from([1, 200, 333, 500, 500, 999]),
        duration_ns=st.integers(0, 80),
        set_aside_ns=st.sampled_from([0, 1, 6, 20]),
        restore_ns=st.integers(0, 60),
    )
    corruption = st.builds(Corruption, st.integers(0, run["horizon_ns"]), st.integers(0, 60))
    troubles = Troubles(
        sorted(draw(st.lists(slowdown, max_size=8)), key=lambda one: one.time_ns),
        sorted(draw(st.lists(corruption, max_size=8)), key=lambda one: one.time_ns),
        persistent_kept=draw(st.integers(1, 4)),
    )
    return run | {"troubles": troubles}


@settings(max_examples=2 * settings.default.max_examples)
@given(troubled_runs())
def test_the_simpy_engines_agree_on_slow_machines_and_silent_errors(run: dict) -> None:
    assert outcome(SimpyEngine, run) == outcome(ExactEngine, run)

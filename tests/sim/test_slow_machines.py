"""Slow machines and links, worked out by hand on both simpy engines; iterations take 100."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from castor_policy.recovery import OWN_MEMORY, PEER
from castor_sim.exact_engine import ExactEngine
from castor_sim.pace import Slowdown
from castor_sim.run import Engine, engine_for, run_once
from castor_sim.setup import Setup, load_setup
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.strategy_costs import NEVER_NS, StrategyCosts
from castor_sim.tally import Operations, Tally
from castor_sim.trouble_config import SlowLinksConfig
from castor_sim.troubles import Troubles

PAIRS = [[0, 1], [1, 0]]
TWO = Operations(2)
COSTS = StrategyCosts(
    iteration_ns=100,
    memory_every=1,
    memory_transfer_ns=100,
    retrieve_own_ns=5,
    retrieve_peer_ns=10,
    warm_up_ns=25,
)


@pytest.fixture
def both(one_block):
    """Run the simpy engines; return what they agree on."""

    def run(
        slowdowns: Sequence[Slowdown],
        rows: Sequence[tuple[int, int, int, int]] = (),
        operations: Operations = TWO,
        horizon_ns: int = NEVER_NS,
        target_iterations: int = 0,
    ) -> tuple[Tally, list[int]]:
        tallies = []
        for kind in (SimpyEngine, ExactEngine):
            engine = kind(
                COSTS,
                operations,
                PAIRS,
                one_block(rows),
                horizon_ns=horizon_ns,
                target_iterations=target_iterations,
                record_sources=True,
                troubles=Troubles(slowdowns),
            )
            tallies.append((engine.run(), engine.sources or []))
        assert tallies[0] == tallies[1]
        return tallies[0]

    return run


def test_all_wait_for_the_slow_one(both) -> None:
    # Half as fast from 150 to 350: by then 250 are trained, at 500 four iterations less 100.
    tally, _ = both([Slowdown(150, 1, 500, 200)], horizon_ns=500)
    assert tally == Tally(wall_ns=500, useful_ns=400, slow_ns=100, iterations=4)


def test_of_several_the_slowest_counts(both) -> None:
    # 100 at full speed, 100 at 0.8, 100 at 0.25, 100 at 0.8, and 100 at full speed again.
    slowdowns = [Slowdown(100, 0, 800, 300), Slowdown(200, 1, 250, 100)]
    tally, _ = both(slowdowns, horizon_ns=500)
    assert (tally.useful_ns, tally.slow_ns) == (100 + 80 + 25 + 80 + 100, 20 + 75 + 20)


def test_the_end_of_the_job_is_put_off(both) -> None:
    # A third as fast, more or less, from 0 on: 333 thousandths. 1000 take 3003.003 ns.
    tally, _ = both([Slowdown(0, 0, 333, 10_000)], target_iterations=10)
    assert (tally.wall_ns, tally.useful_ns, tally.slow_ns) == (3004, 1000, 2004)
    # Slow from within the last iteration on, and no more: what is left of it takes twice as long.
    tally, _ = both([Slowdown(950, 0, 500, 20)], target_iterations=10)
    assert (tally.wall_ns, tally.slow_ns) == (1010, 10)


def test_what_a_failure_throws_away_is_told_apart_from_what_slowness_cost(both) -> None:
    # Half as fast from the start. At 500 two iterations and a half are done, and 1 is complete.
    tally, sources = both([Slowdown(0, 1, 500, 1000)], [(500, 0, 0, 0)], horizon_ns=1030)
    assert sources == [OWN_MEMORY]
    # From 530 on 1 is done; until 1000 that makes 235 more, and 30 at full speed.
    assert tally.useful_ns == 100 + 235 + 30
    assert tally.lost_progress_ns == 150
    assert tally.slow_ns == 250 + 235


def test_another_machine_in_its_place_is_not_slow(both) -> None:
    tally, sources = both([Slowdown(0, 1, 500, 10_000)], [(500, 1, 1, 0)], horizon_ns=1000)
    assert sources == [PEER]
    assert tally.slow_ns == 250
    # A failure of its software alone leaves it as slow.
    tally, _ = both([Slowdown(0, 1, 500, 10_000)], [(500, 1, 0, 0)], horizon_ns=1000)
    assert tally.slow_ns == 250 + 235


def test_a_standby_takes_its_place_once_it_was_slow_for_so_long(both) -> None:
    slow = Slowdown(0, 1, 500, 10_000, set_aside_ns=500, restore_ns=70)
    standby = Operations(2, standbys=1, activation_ns=7)
    tally, sources = both([slow], operations=standby, horizon_ns=1000)
    assert sources == [PEER]
    # At 500 half of iteration 3 is done and 1 is complete. Standby at 507, retrieval to 517,
    # warm-up to 542, and 458 at full speed.
    assert tally == Tally(
        wall_ns=1000,
        useful_ns=100 + 458,
        slow_ns=250,
        lost_progress_ns=150,
        replacement_wait_ns=7,
        retrieval_ns=10,
        warm_up_ns=25,
        iterations=5,
        recoveries=1,
        set_aside=1,
        recovered_peer=1,
    )


@pytest.mark.parametrize(
    ("duration_ns", "operations", "aside"),
    [
        (501, Operations(2, standbys=1), 1),
        (500, Operations(2, standbys=1), 0),  # it ends at the instant at which it is looked at
        (501, Operations(2), 0),  # nobody could take its place
        (501, Operations(2, fleet=3), 1),
        (501, Operations(2, fleet=2), 0),
    ],
)
def test_who_is_set_aside(both, duration_ns: int, operations: Operations, aside: int) -> None:
    slow = Slowdown(0, 1, 500, duration_ns, set_aside_ns=500)
    tally, _ = both([slow], operations=operations, horizon_ns=2000)
    assert tally.set_aside == aside


def test_it_is_looked_at_again_where_no_standby_was_free(both) -> None:
    # The standby replaces 0 at 50, and another stands by from 750 on: at 1000 it takes 1's place.
    slow = Slowdown(0, 1, 500, 10_000, set_aside_ns=500, restore_ns=100)
    operations = Operations(2, standbys=1, exit_ns=0)
    tally, _ = both([slow], [(50, 0, 1, 700)], operations, horizon_ns=1001)
    assert (tally.set_aside, tally.hardware_failures) == (1, 1)
    tally, _ = both([slow], [(50, 0, 1, 700)], operations, horizon_ns=999)
    assert tally.set_aside == 0


def test_a_slow_standby_slows_the_job_once_it_has_a_place(both) -> None:
    # Machine 2 stands by. Machine 0 fails at 400: from 435 on 2 has its place.
    slow = [Slowdown(100, 2, 500, 10_000)]
    tally, _ = both(slow, [(400, 0, 1, 50)], Operations(2, fleet=3), horizon_ns=1035)
    assert (tally.slow_ns, tally.set_aside) == (300, 0)


# ---- experiments ---------------------------------------------------------------------------------

STRAGGLERS = 'stragglers={rate="2/day", speed=0.5, duration={median="1h", mean="1h"}}'


def setup_of(*overrides: str) -> Setup:
    return load_setup("gpt2-100b-p4d", ('duration="10d"', "seeds=2", *overrides))


def test_an_experiment_has_as_many_as_it_says() -> None:
    setup = setup_of(STRAGGLERS)
    slowdowns = setup.slowdowns(1)
    # 16 machines, 2 a day, 10 days: 320, with a standard deviation of 18.
    assert abs(len(slowdowns) - 320) < 4 * 18
    assert slowdowns == sorted(slowdowns, key=lambda one: one.time_ns)
    assert {one.duration_ns for one in slowdowns} == {3600 * 10**9}
    assert {one.machine for one in slowdowns} == set(range(16))
    assert slowdowns == setup.slowdowns(1) != setup.slowdowns(2)


def test_the_compiled_engine_refuses_them_and_the_simpy_engine_runs() -> None:
    setup = setup_of(STRAGGLERS)
    assert engine_for(setup, Engine.JUMP) == Engine.SIMPY
    assert engine_for(setup, Engine.EXACT) == Engine.EXACT
    assert engine_for(setup_of(), Engine.JUMP) == Engine.JUMP
    with pytest.raises(ValueError, match="knows failures alone; use the simpy engine"):
        run_once(setup, "gemini", 1, Engine.JUMP)
    # At any time some of 16 are slow for the share 1 - exp(-16 * 2 / 24); half of that is lost.
    slow = run_once(setup_of(STRAGGLERS, 'failures={process="none"}'), "gemini", 1, Engine.SIMPY)
    assert slow.slow_ns / slow.wall_ns == pytest.approx(0.5 * 0.736, abs=0.04)


def test_a_slow_link_lengthens_what_the_network_is_busy_for() -> None:
    # 65 s, of which 55 s of network traffic take twice as long.
    links = SlowLinksConfig.model_validate({"rate": "1/day", "bandwidth": 0.5})
    assert links.training_speed(65, 10) == pytest.approx(65 / 120)
    assert links.training_speed(65, 65) == 1.0
    setup = setup_of('slow_links={rate="2/day", bandwidth=0.5}', 'training.network_idle="20s"')
    # 60 s an iteration, of which 40 s become 80 s.
    assert {one.speed for one in setup.slowdowns(1)} == {600}

"""Silent errors, worked out by hand on both simpy engines.

Iterations take 100; memory holds n from 100 (n + 1) on, storage 4 from 450 on, 8 from 850 on,
and so on. The error strikes at 550: iteration 5 is the last that is sound.
"""

from __future__ import annotations

import pytest

from castor_policy.recovery import OWN_MEMORY, SCRATCH, STORAGE
from castor_sim.corruption import Corruption
from castor_sim.exact_engine import ExactEngine
from castor_sim.setup import load_setup
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.tally import Operations, Tally
from castor_sim.troubles import Troubles

COSTS = StrategyCosts(
    iteration_ns=100,
    memory_every=1,
    memory_transfer_ns=100,
    storage_every=4,
    storage_transfer_ns=50,
    retrieve_own_ns=5,
    retrieve_storage_ns=60,
    warm_up_ns=25,
)


@pytest.fixture
def both(one_block):
    """Run the simpy engines for 2000 ns; return what they agree on."""

    def run(*errors: tuple[int, int], failures=(), kept: int = 2) -> tuple[Tally, list[int]]:
        troubles = Troubles((), tuple(Corruption(*one) for one in errors), kept)
        rows = one_block([(time_ns, 0, 0, 0) for time_ns in failures])
        found = []
        for kind in (SimpyEngine, ExactEngine):
            engine = kind(
                COSTS,
                Operations(2, exit_ns=0),
                [[0, 1], [1, 0]],
                rows,
                horizon_ns=2000,
                record_sources=True,
                troubles=troubles,
            )
            found.append((engine.run(), engine.sources or []))
        assert found[0] == found[1]
        return found[0]

    return run


@pytest.mark.parametrize(
    ("seen_after_ns", "kept", "source", "iteration"),
    [
        (149, 2, OWN_MEMORY, 5),  # at 699 memory still holds 5
        (150, 2, STORAGE, 4),  # at 700 it holds 6, which is spoiled
        (699, 2, STORAGE, 4),  # at 1249 storage keeps 4 and 8
        (700, 2, SCRATCH, 0),  # at 1250 it keeps 8 and 12
        (700, 3, STORAGE, 4),
    ],
)
def test_what_is_loaded_is_from_before_the_error(
    both, seen_after_ns: int, kept: int, source: int, iteration: int
) -> None:
    seen_ns = 550 + seen_after_ns
    retrieval_ns = {OWN_MEMORY: 5, STORAGE: 60, SCRATCH: 0}[source]
    tally, sources = both((550, seen_after_ns), kept=kept)
    assert sources == [source]
    assert (tally.corruptions, tally.recoveries, tally.retrieval_ns) == (1, 1, retrieval_ns)
    assert tally.lost_progress_ns == seen_ns - 100 * iteration
    assert tally.useful_ns == 100 * iteration + 2000 - seen_ns - retrieval_ns - 25


def test_a_failure_that_goes_back_behind_the_error_ends_it(both) -> None:
    # At 590 memory holds 4, from before the error.
    tally, sources = both((550, 300), failures=[590])
    assert (sources, tally.corruptions, tally.recoveries) == ([OWN_MEMORY], 0, 1)


def test_a_failure_that_loads_what_is_spoiled_does_not(both) -> None:
    # At 720 memory holds 6, which is spoiled; the error is seen at 850, and storage holds 4.
    tally, sources = both((550, 300), failures=[720])
    assert (sources, tally.corruptions) == ([OWN_MEMORY, STORAGE], 1)
    # From 720 back to 600; then 100 from 750 on, and from there back to 400.
    assert tally.lost_progress_ns == 120 + 100 + 200


def test_a_failure_during_the_recovery_loads_the_same_again(both) -> None:
    # Seen at 750, retrieval from storage until 810; at 780 a trainer fails. Memory is as it was.
    tally, sources = both((550, 200), failures=[780])
    assert sources == [STORAGE, STORAGE]
    assert tally.retrieval_ns == 30 + 60


def test_what_was_spoiled_is_not_loaded_later(both) -> None:
    # Storage has 4 and 8 when the error is seen at 900, and 4 is loaded at 960. At 1200 a trainer
    # fails: 6 is in memory (4 at 985, 5 at 1085, whole at 1185), 8 would be newer.
    tally, sources = both((550, 350), failures=[1200])
    assert sources == [STORAGE, OWN_MEMORY]
    assert tally.lost_progress_ns == 500 + (1200 - 985 - 100)


def test_where_the_job_does_not_train_nothing_is_spoiled(both) -> None:
    # From 500 to 530 it recovers.
    assert both((520, 100), failures=[500])[0].corruptions == 0
    assert both((530, 100), failures=[500])[0].corruptions == 1


def test_a_second_error_changes_nothing_before_the_first_is_over(both) -> None:
    assert both((550, 300), (560, 100)) == both((550, 300))
    # At 950 training has gone on from 4 again.
    tally, sources = both((550, 200), (950, 100))
    assert (tally.corruptions, sources[0]) == (2, STORAGE)


def test_an_experiment_has_as_many_as_it_says() -> None:
    table = 'silent_corruption={rate="0.5/day", seen_after={median="2h", mean="2h"}}'
    setup = load_setup("gpt2-100b-p4d", ('duration="10d"', table))
    found = setup.troubles(1).corruptions
    # 16 machines, 10 days, one in two: 80, with a standard deviation of 9.
    assert abs(len(found) - 80) < 4 * 9
    assert {one.seen_after_ns for one in found} == {2 * 3600 * 10**9}
    assert setup.has_troubles
    assert found == setup.troubles(1).corruptions != setup.troubles(2).corruptions

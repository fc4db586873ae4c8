"""Recoveries in place, worked out by hand on all three engines; iterations take 100."""

from __future__ import annotations

import pytest

from castor_sim.strategies import Gemini
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.tally import Operations

PAIRS = [[0, 1], [1, 0], [2, 3], [3, 2]]

RESTART, ALONE, SPARE, BUILD = 1000, 300, 70, 40

COSTS = StrategyCosts(
    iteration_ns=100,
    memory_every=1,
    memory_transfer_ns=100,
    retrieve_own_ns=1,
    retrieve_peer_ns=1,
    warm_up_ns=RESTART,
    in_place=1,
    warm_up_in_place_ns=SPARE,
    warm_up_alone_ns=ALONE,
    warm_spares=1,
    spare_build_ns=BUILD,
)
SOFTWARE, HARDWARE = 0, 1


def run(all_three, rows, costs=COSTS, positions=4):
    """Return warm-up, recoveries, and those in place, of runs that no phase holds up otherwise."""
    replicas = PAIRS[:positions] if positions > 1 else [[0]]
    tally, _ = all_three(
        costs,
        Operations(positions, exit_ns=0),
        replicas,
        [(time, machine, hardware, 0) for time, machine, hardware in rows],
        horizon_ns=20_000,
    )
    return tally.warm_up_ns, tally.recoveries, tally.recoveries_in_place


@pytest.mark.parametrize(
    ("time", "hardware", "warm_up"),
    [
        # Spares are started when iteration 2 ends, at 200, and stand at 240.
        (239, SOFTWARE, ALONE),
        (240, SOFTWARE, SPARE),
        (240, HARDWARE, ALONE),  # on another machine no spare stands
        # Iteration 1's checkpoint is whole at 200; before that training starts anew.
        (199, SOFTWARE, RESTART),
    ],
)
def test_what_takes_the_lost_place(all_three, time, hardware, warm_up) -> None:
    in_place = int(warm_up != RESTART)
    assert run(all_three, [(time, 2, hardware)]) == (warm_up, 1, in_place)


def test_without_spares_each_place_is_taken_by_a_process_that_builds_alone(all_three) -> None:
    costs = COSTS._replace(warm_spares=0)
    assert run(all_three, [(990, 2, SOFTWARE)], costs) == (ALONE, 1, 1)


def test_the_slowest_place_is_waited_for(all_three) -> None:
    assert run(all_three, [(990, 0, SOFTWARE), (990, 3, SOFTWARE)]) == (SPARE, 1, 1)
    assert run(all_three, [(990, 0, SOFTWARE), (990, 3, HARDWARE)]) == (ALONE, 1, 1)


@pytest.mark.parametrize(
    ("second", "machine", "warm_up"),
    [
        # Training goes on at 990 + 1 + 70 = 1061; a spare is started at 1261, and stands at 1301.
        (1300, 2, SPARE + ALONE),
        (1301, 2, SPARE + SPARE),
        (1300, 1, SPARE + SPARE),  # that of another machine stands all the while
    ],
)
def test_a_spare_that_was_taken_is_replaced(all_three, second, machine, warm_up) -> None:
    rows = [(990, 2, SOFTWARE), (second, machine, SOFTWARE)]
    assert run(all_three, rows) == (warm_up, 2, 2)


def test_a_spare_goes_on_building_through_the_next_recovery(all_three) -> None:
    # Machine 2's new spare is started at 1261. Another machine fails at 1270: recovery from 1271 to
    # 1341. At 1345 the new spare of machine 2 stands, although no two iterations have ended since.
    rows = [(990, 2, SOFTWARE), (1270, 0, SOFTWARE), (1345, 2, SOFTWARE)]
    assert run(all_three, rows) == (3 * SPARE, 3, 3)


def test_who_has_not_trained_since_it_was_started_is_started_again(all_three) -> None:
    # The spare was taken at 990. At 1000, within the warm-up, another machine fails: the process on
    # machine 2 cannot leave in place, and no other spare stands there.
    rows = [(990, 2, SOFTWARE), (1000, 1, SOFTWARE)]
    assert run(all_three, rows) == (9 + ALONE, 1, 1)
    # At 1061, when training goes on, it can.
    rows = [(990, 2, SOFTWARE), (1061, 1, SOFTWARE)]
    assert run(all_three, rows) == (2 * SPARE, 2, 2)


def test_after_a_restart_of_all_nobody_stays_until_training_goes_on(all_three) -> None:
    # Both of a pair lost, no storage: from scratch at 990, warm-up 1000 long. At 1500 another
    # fails; memory has nothing. At 2500 training goes on from 0; checkpoint 1 is whole at 2700.
    both = [(990, 0, HARDWARE), (990, 1, HARDWARE)]
    assert run(all_three, [*both, (1500, 3, SOFTWARE)]) == (510 + RESTART, 1, 0)
    # Spares ended with the restart: those started at 2700 stand at 2740.
    for time, warm_up in ((2739, ALONE), (2740, SPARE)):
        rows = [*both, (1500, 3, SOFTWARE), (time, 3, SOFTWARE)]
        assert run(all_three, rows) == (510 + RESTART + warm_up, 2, 1)


def test_who_was_restarted_from_storage_is_restarted_again_before_it_trains(all_three) -> None:
    # Both of a pair lost at 990; storage has 8 (whole at 800): restart from 990 to 1990. At 1500
    # own memory serves, and three machines have lost nothing, but none has trained.
    costs = COSTS._replace(storage_every=8)
    rows = [(990, 0, HARDWARE), (990, 1, HARDWARE), (1500, 3, SOFTWARE)]
    assert run(all_three, rows, costs) == (510 + RESTART, 1, 0)


def test_where_all_are_lost_nobody_stays(all_three) -> None:
    rows = [(990, machine, SOFTWARE) for machine in range(4)]
    assert run(all_three, rows) == (RESTART, 1, 0)
    assert run(all_three, rows[:3]) == (SPARE, 1, 1)


def test_memory_that_serves_after_a_restart_still_restarts_who_has_not_trained(all_three) -> None:
    # All lost at 990, restart until 1991. One more fails at 1500: nobody has trained since.
    rows = [(990, machine, SOFTWARE) for machine in range(4)]
    assert run(all_three, [*rows, (1500, 3, SOFTWARE)]) == (509 + RESTART, 1, 0)


def test_in_place_that_costs_as_much_as_a_restart_changes_nothing(all_three) -> None:
    rows = [(150, 0, SOFTWARE), (3000, 2, SOFTWARE), (5000, 1, HARDWARE), (5500, 2, HARDWARE)]
    same = COSTS._replace(warm_up_in_place_ns=RESTART, warm_up_alone_ns=RESTART)
    warm_up, recoveries, in_place = run(all_three, rows, same)
    assert (recoveries, in_place) == (3, 2)
    assert run(all_three, rows, COSTS._replace(in_place=0)) == (warm_up, recoveries, 0)


@pytest.mark.parametrize("key", ["warm_spares", "warm_up_in_place", "warm_up_alone"])
def test_what_is_of_recoveries_in_place_is_refused_without(key: str) -> None:
    value = True if key == "warm_spares" else "30s"
    with pytest.raises(ValueError, match=f"`{key}` is for recoveries in place: add `in_place"):
        Gemini.model_validate({key: value})
    assert getattr(Gemini.model_validate({"in_place": True, key: value}), key)

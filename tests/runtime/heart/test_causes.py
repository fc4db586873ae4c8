"""Who is held for a failure, and who takes whose place, in one process: the very same bits.

The agents, trainers, memory and servers are real, as in `test_heart`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from castor_lab.one_process import Cluster, Outcome, TrainerThread
from castor_lab.one_process.cluster import PATIENCE_S
from castor_lab.one_process.failures import die_settled, leave, lose, settled
from castor_policy.job_options import RecoveryOptions
from castor_policy.membership import WatchLimits
from castor_records.events.event import of_kind
from castor_records.events.failures import Detected, Planned, Replaced, SetAside
from castor_records.events.storing import StoreTrouble

ITERATIONS = 8
START = ("scratch", 0)

Make = Callable[..., Cluster]


def plans(outcome: Outcome) -> list[tuple[str, int]]:
    return [(one.event.tier, one.event.iteration) for one in of_kind(outcome.events, Planned)]


def places(outcome: Outcome) -> list[tuple[int, str]]:
    """Which machines were filled again, and by whom."""
    return [(one.event.machine, one.event.agent) for one in of_kind(outcome.events, Replaced)]


def ends(outcome: Outcome, state: str, *lost: str) -> None:
    """Hold a run to its right end: state, exit codes, and nothing left."""
    assert (outcome.iteration, outcome.state) == (ITERATIONS, state)
    assert outcome.codes == {name: None if name in lost else 0 for name in outcome.codes}
    assert outcome.left == ()


@pytest.mark.parametrize(
    ("says_so", "cause"),
    [
        (True, "rank 1 exited with code 0 while others still trained"),
        (False, "rank 1 exited with code 0 before it had finished training"),
    ],
)
def test_a_rank_that_leaves_with_code_0_is_named_and_training_goes_on(
    make: Make, whole: str, says_so: bool, cause: str
) -> None:
    """As by `sys.exit(0)`, where it says that it has finished, and by `os._exit(0)`."""
    cluster = make()
    cluster.at(1, 5, leave(says_so=says_so))
    outcome = cluster.run()
    ends(outcome, whole)
    assert plans(outcome) == [START, ("own_memory", 5)]
    (detected,) = of_kind(outcome.events, Detected)
    assert (detected.event.machine, detected.event.rank) == (1, 1)
    assert detected.event.cause == cause


def test_who_fails_again_and_again_is_set_aside_for_a_standby(make: Make, whole: str) -> None:
    cluster = make(standby=1, recovery=RecoveryOptions(set_aside_after=3))
    for step in (2, 4, 6):
        cluster.at(1, step, die_settled)
    outcome = cluster.run()
    ends(outcome, whole)
    (aside,) = of_kind(outcome.events, SetAside)
    assert (aside.event.agent, aside.event.stays, aside.event.generation) == ("node-1", False, 4)
    assert places(outcome) == [(1, "node-4")]
    assert [iteration for _, iteration in plans(outcome)] == [0, 2, 4, 6]


def test_a_standby_dies_as_it_takes_a_place(make: Make, whole: str) -> None:
    cluster = make(standby=2)
    cluster.at(2, 5, lose(cluster, "node-2", memory=True, comes_back=False))
    cluster.when(Replaced, 2, lambda: cluster.lose("node-4", memory=True, comes_back=False))
    outcome = cluster.run()
    ends(outcome, whole, "node-2", "node-4")
    assert places(outcome) == [(2, "node-4"), (2, "node-5")]
    assert set(plans(outcome)[1:]) == {("peer", 5)}
    assert outcome.redone == 0


def test_an_agent_that_comes_back_after_a_standby_took_its_place_disturbs_nobody(
    make: Make, whole: str
) -> None:
    """It alone is cut off from the store, for longer than its lease; its trainers go on."""
    cluster = make(standby=1, limits=WatchLimits(lease_s=2.0))
    replaced = threading.Event()

    def cut_off(trainer: TrainerThread) -> None:
        settled(trainer)
        cluster.in_loop(lambda: cluster.cut_off("node-1"))
        trainer.killed.wait(PATIENCE_S)

    def mend() -> None:
        cluster.cut_off("node-1", is_cut=False)
        replaced.set()

    cluster.at(0, 4, cut_off)
    cluster.when(Planned, 2, mend)
    outcome = cluster.run()
    ends(outcome, whole)
    assert replaced.is_set()
    assert places(outcome) == [(1, "node-4")]
    assert plans(outcome) == [START, ("peer", 4)]


def test_a_store_that_is_wiped_costs_nothing_and_a_later_failure_is_recovered_from(
    make: Make, whole: str
) -> None:
    cluster = make()

    def wipe(trainer: TrainerThread) -> None:
        cluster.in_loop(cluster.wipe_store)
        agents = [cluster.agent(machine.name) for machine in cluster.machines]
        while any(agent._session.view.epoch == 0 for agent in agents):
            trainer.go_on()
            time.sleep(0.01)

    cluster.at(0, 3, wipe)
    cluster.at(3, 6, die_settled)
    outcome = cluster.run()
    ends(outcome, whole)
    assert plans(outcome) == [START, ("own_memory", 6)]
    troubles = of_kind(outcome.events, StoreTrouble)
    told = {one.event.agent for one in troubles if one.event.about == "data"}
    assert told == {machine.name for machine in cluster.machines}
    assert outcome.redone == 0

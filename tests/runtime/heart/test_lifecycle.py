"""A job that its user stops, resumes or drains a machine of, in one process: the very same bits.

The agents, trainers, memory and servers are real, as in `test_heart`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from castor_lab.one_process import Cluster, Outcome, TrainerThread
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import plan_key
from castor_policy.agents.wish import WishKind
from castor_policy.job_options import PersistenceOptions
from castor_records.events.event import of_kind
from castor_records.events.failures import Detected, Drained, Planned

ITERATIONS = 12

Make = Callable[..., Cluster]


def ask_at(cluster: Cluster, step: int, kind: str, name: str = "") -> None:
    """Ask for something as rank 0 comes to an update; training waits until it is in the store."""

    def ask(_: TrainerThread) -> None:
        cluster.in_loop(lambda: cluster.ask(kind, name))

    cluster.at(0, step, ask)


def slowly(cluster: Cluster, seconds: float = 0.03) -> None:
    """Have iterations take as long as a word from the store does, or longer."""
    for step in range(ITERATIONS):
        cluster.at(1, step, lambda trainer: trainer.killed.wait(seconds) and None)


def plan_of(cluster: Cluster) -> Plan:
    (found,), _ = cluster.model.get_prefix(plan_key(cluster.spec.job), time.monotonic())
    return Plan.from_json(found.value)


def plans(outcome: Outcome) -> list[tuple[str, int]]:
    return [(one.event.tier, one.event.iteration) for one in of_kind(outcome.events, Planned)]


@pytest.mark.parametrize("by", ["its user", "SIGTERM"])
def test_a_drained_machine_gives_its_place_away_and_nothing_is_done_again(
    make: Make, whole: str, by: str
) -> None:
    cluster = make(standby=1)
    slowly(cluster)
    if by == "its user":
        ask_at(cluster, 3, WishKind.DRAIN, "node-2")
    else:
        cluster.at(0, 3, lambda _: cluster.in_loop(lambda: cluster.agent("node-2").leave(30.0)))
    outcome = cluster.run()
    assert (outcome.iteration, outcome.state) == (ITERATIONS, whole)
    assert outcome.redone == 0
    assert outcome.codes == {"node-2": 93} | dict.fromkeys(
        ("node-0", "node-1", "node-3", "node-4"), 0
    )
    assert outcome.left == ()
    assert plan_of(cluster).agents == ("node-0", "node-1", "node-4", "node-3")
    (_, (tier, iteration)) = plans(outcome)
    assert tier == "peer"
    assert 3 <= iteration < ITERATIONS
    assert list(of_kind(outcome.events, Detected)) == []
    (drained,) = (one.event for one in of_kind(outcome.events, Drained))
    assert (drained.machine, drained.agent, drained.iteration) == (2, "node-2", iteration)


def test_a_stopped_job_ends_at_once_and_keeps_nothing(make: Make) -> None:
    cluster = make(standby=1)
    slowly(cluster)
    ask_at(cluster, 3, WishKind.STOP)
    outcome = cluster.run()
    assert set(outcome.codes.values()) == {93}
    assert outcome.left == ()
    plan = plan_of(cluster)
    assert plan.phase == Phase.STOPPED
    assert 1 <= plan.reached < ITERATIONS  # as it was told last, within a second


def test_a_job_that_is_stopped_at_a_checkpoint_goes_on_from_it_to_the_same_bits(
    make: Make, whole: str, tmp_path: Path
) -> None:
    import_module("castor_runtime.persistent.deepspeed_format")  # seconds; not while it trains
    persistence = PersistenceOptions(tiers=(str(tmp_path / "kept"),), every_s=3600.0)
    cluster = make(persistence=persistence)
    slowly(cluster)
    ask_at(cluster, 3, WishKind.CHECKPOINT)
    outcome = cluster.run()
    assert set(outcome.codes.values()) == {93}
    assert outcome.left == ()
    stopped = plan_of(cluster)
    assert (stopped.phase, stopped.reason) == (Phase.STOPPED, "stopped by its user at a checkpoint")
    assert 3 <= stopped.reached < ITERATIONS
    assert max(cluster.trained[0]) == stopped.reached  # and nobody trained beyond it
    cluster.resume()
    outcome = cluster.run()
    assert (outcome.iteration, outcome.state) == (ITERATIONS, whole)
    assert outcome.redone == 0
    assert set(outcome.codes.values()) == {0}
    assert plans(outcome)[-1] == ("storage", stopped.reached)
    assert plan_of(cluster).generation == stopped.generation + 1

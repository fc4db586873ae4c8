"""A job whose `redundancy` is "degraded": checkpoints do not wait for replicas still fetched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from castor_policy.agents.agent_report import State
from castor_policy.agents.effects import Fetch, Log, Redundant, StopFetching, WorkerEffect
from castor_policy.agents.events import (
    Fetched,
    FetchFailed,
    Inspected,
    PlanChanged,
    Progressed,
    SessionOpened,
    TrainerResumed,
    WorkerEvent,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.worker import Worker
from castor_policy.job_options import DEGRADED, WAIT, RecoveryOptions
from castor_policy.placement import place
from castor_records.events.failures import Degraded

NAMES = ("node-0", "node-1")
ROWS = place("mixed", 2, 2).replicas


def told(made: Worker, event: WorkerEvent, now_s: float = 1.0) -> list[WorkerEffect]:
    return list(made.handle(event, now_s))


def trains_without_a_replica(redundancy: str) -> tuple[Worker, list[WorkerEffect]]:
    """A worker that has fetched its own part of iteration 5, and not the other one yet."""
    spec = JobSpec("j", 2, 1, "group", ROWS, "train.py")
    spec = replace(spec, recovery=RecoveryOptions(redundancy=redundancy))
    made = Worker(spec, "node-0", "node-0.1", "node-0:1", False, 0.0)
    lives = tuple(f"{name}.1" for name in NAMES)
    gather = Plan(1, 7, Phase.GATHER, NAMES, lives)
    load = replace(
        gather,
        phase=Phase.LOAD,
        tier="peer",
        iteration=5,
        sources=ROWS,
        addresses=tuple(f"{name}:1" for name in NAMES),
    )
    for event in (
        SessionOpened(None),
        PlanChanged(gather, 2),
        Inspected(1, {}, (), "node-0:99"),
        PlanChanged(load, 3),
        Fetched(1, 0, (1,), 8, 0.1),
    ):
        told(made, event)
    resumed = told(made, TrainerResumed(1, 0))
    assert made.report.state == State.RUNNING
    assert not made.report.redundant
    return made, resumed


def test_it_is_told_that_a_machine_trains_degraded() -> None:
    made, resumed = trains_without_a_replica(DEGRADED)
    assert resumed[0] == Log(Degraded(generation=1, machine=0))
    made.validate()
    assert not [e for e in trains_without_a_replica(WAIT)[1] if isinstance(e, Log)]


@pytest.mark.parametrize("late", [Fetched(1, 1, (1,), 8, 0.1), FetchFailed(1, 1, "gone")])
def test_a_checkpoint_ends_what_is_still_fetched_and_nothing_is_asked_for_again(
    late: WorkerEvent,
) -> None:
    made, _ = trains_without_a_replica(DEGRADED)
    before = told(made, Progressed(1, 6, agreed=5), 10.0)
    assert not [e for e in before if isinstance(e, StopFetching | Redundant)]
    after = told(made, Progressed(1, 7, agreed=6), 10.1)
    assert after[:2] == [StopFetching(1), Redundant(1)]
    assert made.report.redundant
    made.validate()
    assert not [e for e in told(made, late) if isinstance(e, Fetch | Redundant)]
    assert not [e for e in told(made, Progressed(1, 8, agreed=7), 12.0) if e == Redundant(1)]


def test_a_fetch_that_ends_before_a_checkpoint_makes_redundancy_whole_as_ever() -> None:
    made, _ = trains_without_a_replica(DEGRADED)
    assert Redundant(1) in told(made, Fetched(1, 1, (1,), 8, 0.1))
    assert made.report.redundant
    assert StopFetching(1) not in told(made, Progressed(1, 7, agreed=6), 10.0)

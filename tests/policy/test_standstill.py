"""A job that stands still: the rank that did not come is named, whoever's timer ran out first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import Log, WritePlan
from castor_policy.agents.events import PlanChanged, ReportChanged, Tick, TrainersStanding
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.root import Root
from castor_policy.agents.standstill import standstill
from castor_policy.agents.worker import Worker
from castor_records.events.failures import Detected

SPEC = JobSpec("job", 2, 2, "group", ((0, 1), (1, 0)), "train.py")


def reports(*standing: Mapping[int, tuple[int, int, int]]) -> list[AgentReport]:
    return [
        AgentReport(
            f"node-{machine}",
            f"i{machine}",
            False,
            f"host:{machine}",
            generation=1,
            state=State.RUNNING,
            standing={str(rank): position for rank, position in positions.items()},
        )
        for machine, positions in enumerate(standing)
    ]


def test_the_rank_with_the_fewest_collectives_is_named() -> None:
    found = standstill(
        SPEC, reports({0: (3, 7, 41), 1: (3, 7, 41)}, {2: (3, 7, 40), 3: (3, 7, 41)})
    )
    assert found is not None
    assert found.ranks == (2,)
    assert "rank 2 does not go on: stands after iteration 7 and collective 40" in found.reason


def test_an_iteration_behind_counts_before_collectives_and_a_phase_before_both() -> None:
    behind = standstill(
        SPEC, reports({0: (3, 7, 41), 1: (3, 6, 50)}, {2: (3, 7, 41), 3: (3, 7, 41)})
    )
    before = standstill(SPEC, reports({0: (1, 0, 0), 1: (1, 0, 0)}, {2: (1, 0, 0), 3: (0, 0, 0)}))
    assert behind is not None
    assert behind.ranks == (1,)
    assert before is not None
    assert before.ranks == (3,)
    assert "rank 3 does not go on: is before its Checkpointer" in before.reason


def test_a_machine_that_goes_on_keeps_the_job_alive() -> None:
    """One rank evaluates on machine 1; all others wait for it in a barrier, for minutes."""
    assert standstill(SPEC, reports({0: (3, 7, 41), 1: (3, 7, 41)}, {})) is None


def test_a_machine_that_has_not_spoken_may_go_on() -> None:
    assert standstill(SPEC, reports({0: (3, 7, 41), 1: (3, 7, 40)})) is None


def test_a_machine_whose_trainers_have_ended_is_not_waited_for() -> None:
    told = reports({0: (3, 7, 41), 1: (3, 7, 40)}, {})
    told[1] = replace(told[1], state=State.FINISHED)
    found = standstill(SPEC, told)
    assert found is not None
    assert found.ranks == (1,)


@pytest.mark.parametrize(
    "positions",
    [
        [(3, 7, 41)] * 4,
        [(3, 7, 41), (3, 7, 41), (3, 7, 42), (3, 7, 41)],
    ],
    ids=["all stand at one place", "one is ahead"],
)
def test_nobody_is_named_where_nobody_is_behind(positions: list[tuple[int, int, int]]) -> None:
    first, second = dict(enumerate(positions[:2])), dict(enumerate(positions[2:], 2))
    found = standstill(SPEC, reports(first, second))
    assert found is not None
    assert found.ranks == ()


def root_over(told: list[AgentReport]) -> Root:
    plan = Plan(1, 5, Phase.LOAD, tuple(r.agent for r in told), tuple(r.incarnation for r in told))
    return Root(SPEC, Office(5, plan, 9, told), 0.0)


def test_the_root_starts_the_next_generation_and_logs_the_machine_that_did_not_come() -> None:
    told = reports({0: (3, 7, 41), 1: (3, 7, 41)}, {})
    root = root_over(told)
    assert root.handle(Tick(), 1.0) == []
    late = replace(told[1], standing={"2": (3, 7, 41), "3": (3, 7, 40)})
    effects = root.handle(ReportChanged("node-1", late), 1.5)
    [written] = [e for e in effects if isinstance(e, WritePlan)]
    told = root.handle(PlanChanged(written.plan, 10), 1.6)
    [detected] = [e for e in told if isinstance(e, Log) and isinstance(e.event, Detected)]
    assert detected.event.machine == 1
    assert detected.event.how == "stall"
    assert (written.plan.generation, written.plan.phase) == (2, Phase.GATHER)
    assert "rank 3" in written.plan.reason


def test_a_worker_says_that_its_trainers_stand_and_that_they_go_on_again() -> None:
    worker = Worker(SPEC, "node-0", "i0", "host:0", False, 0.0)
    worker.plan = Plan(1, 5, Phase.LOAD, ("node-0", "node-1"), ("i0", "i1"))
    worker.generation, worker.machine = 1, 0
    worker.handle(TrainersStanding(1, {0: (3, 7, 41), 1: (3, 7, 40)}), 1.0)
    assert worker.report.standing == {"0": (3, 7, 41), "1": (3, 7, 40)}
    assert AgentReport.from_json(worker.report.to_json()) == worker.report
    worker.handle(TrainersStanding(0, {}), 2.0)  # of an earlier generation
    assert worker.report.standing
    worker.handle(TrainersStanding(1, {}), 2.0)
    assert worker.report.standing == {}

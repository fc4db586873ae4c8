"""Going on without a restart, as the agents decide it: who is parked, and when that helps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import (
    Inspect,
    Log,
    ParkTrainers,
    Report,
    StopTrainers,
    WorkerEffect,
)
from castor_policy.agents.events import (
    Inspected,
    PlanChanged,
    SessionOpened,
    TrainerLostPeer,
    TrainerResumed,
    Verified,
    WorkerEvent,
)
from castor_policy.agents.evidence import SightKind
from castor_policy.agents.gathering import decided
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.worker import Worker
from castor_policy.placement import place

NAMES = ("node-0", "node-1")
PLACED = place("group", 2, 2)
SPEC = JobSpec("j", 2, 1, "group", PLACED.replicas, "train.py")


def gather(generation: int, agents: tuple[str, ...] = NAMES) -> Plan:
    return Plan(generation, 7, Phase.GATHER, agents, tuple(f"{name}.1" for name in agents))


def load(generation: int) -> Plan:
    return replace(
        gather(generation),
        phase=Phase.LOAD,
        tier="own_memory",
        iteration=5,
        sources=PLACED.replicas,
        addresses=tuple(f"{name}:1" for name in NAMES),
        in_place=True,
    )


def told(made: Worker, *events: WorkerEvent) -> list[WorkerEffect]:
    effects = [effect for event in events for effect in made.handle(event, 1.0)]
    return [effect for effect in effects if not isinstance(effect, Log)]


@pytest.fixture
def training() -> Worker:
    """The worker of machine 0, whose trainer trains in generation 1."""
    made = Worker(SPEC, "node-0", "node-0.1", "node-0:1", False, 0.0)
    made.handle(SessionOpened(None), 0.0)
    told(made, PlanChanged(gather(1), 2), Inspected(1, {0: (5,), 1: (5,)}, (), "node-0:99"))
    told(made, PlanChanged(load(1), 3), Verified(1, 0, intact=True), TrainerResumed(1, 0))
    assert made.report.state == State.RUNNING
    return made


def test_trainers_are_parked_where_the_machine_keeps_its_place(training: Worker) -> None:
    # Memory is looked at after that, when nobody writes it any more.
    assert told(training, PlanChanged(gather(2), 4)) == [ParkTrainers(), Inspect(2, 0)]


def test_trainers_are_stopped_where_the_machine_gets_another_place(training: Worker) -> None:
    turned = gather(2, ("node-1", "node-0"))
    assert told(training, PlanChanged(turned, 4)) == [StopTrainers(), Inspect(2, 1)]


def test_trainers_are_stopped_where_the_machine_has_no_place_any_more(training: Worker) -> None:
    effects = told(training, PlanChanged(gather(2, ("spare-0", "node-1")), 4))
    assert StopTrainers() in effects
    assert ParkTrainers() not in effects


def test_who_is_parked_is_told_until_it_loads(training: Worker) -> None:
    parked = Inspected(2, {0: (5,), 1: (5,)}, (), "node-0:99", parked=(0,))
    (said,) = told(training, PlanChanged(gather(2), 4), parked)[2:]
    assert isinstance(said, Report)
    assert (said.report.state, said.report.parked) == (State.GATHERED, (0,))
    told(training, PlanChanged(load(2), 5))
    assert (training.report.state, training.report.parked) == (State.LOADING, ())


def test_a_trainer_that_lost_a_peer_is_no_cause(training: Worker) -> None:
    (said,) = told(training, TrainerLostPeer(1, 0, "StreamError: from rank 1"))
    assert isinstance(said, Report)
    assert (said.report.state, said.report.kind) == (State.FAILED, SightKind.CONNECTION)
    (sight,) = said.report.seen
    assert (sight.rank, sight.said) == (0, "lost a peer: StreamError: from rank 1")
    # It is of the generation before, where one has begun.
    told(training, PlanChanged(gather(2), 4))
    assert told(training, TrainerLostPeer(1, 0, "late")) == []


def gathered(name: str, *held: int, parked: tuple[int, ...] = ()) -> AgentReport:
    return AgentReport(
        name,
        f"{name}.1",
        False,
        f"{name}:1",
        generation=2,
        state=State.GATHERED,
        holdings={"0": held, "1": held} if held else {},
        persistent=(3,),
        rendezvous=f"{name}:99",
        parked=parked,
    )


@pytest.mark.parametrize(
    ("reports", "tier", "in_place"),
    [
        ([gathered("node-0", 5, parked=(0,)), gathered("node-1", 5)], "own_memory", True),
        ([gathered("node-0", 5), gathered("node-1", 5, parked=(1,))], "own_memory", True),
        ([gathered("node-0", 5, parked=(0,)), gathered("node-1")], "peer", True),
        ([gathered("node-0", 5), gathered("node-1", 5)], "own_memory", False),
        # Who is started builds its engine alone, and would train with what it was built as.
        ([gathered("node-0", parked=(0,)), gathered("node-1")], "storage", False),
        (
            [replace(gathered(name, parked=(0,)), persistent=()) for name in NAMES],
            "scratch",
            False,
        ),
    ],
)
def test_a_plan_goes_on_in_place_out_of_memory_if_anybody_is_parked(
    reports: list[AgentReport], tier: str, *, in_place: bool
) -> None:
    plan = decided(SPEC, PLACED, gather(2), reports)
    assert plan is not None
    assert (plan.tier, plan.in_place) == (tier, in_place)

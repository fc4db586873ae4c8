"""Who fills which machine: whoever holds its parts, also under another root and another store."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.beginning import BEGIN_WITHOUT_S
from castor_policy.agents.effects import Log, WritePlan
from castor_policy.agents.events import PlanChanged, ReportChanged, Tick
from castor_policy.agents.filling import Filling
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.root import Root
from castor_policy.agents.seating import copies_together, holds_parts, kept_iteration, seats
from castor_policy.job_options import RecoveryOptions
from castor_policy.placement import place
from castor_records.events.failures import CopiesTogether

SPEC = JobSpec(
    "j",
    4,
    1,
    "ring",
    place("ring", 4, 2).replicas,
    "t.py",
    recovery=RecoveryOptions(gather_s=120.0),
)
NAMES = ("a-0", "a-1", "a-2", "a-3")


def idle(name: str, machine: int | None = None, iteration: int = 9) -> AgentReport:
    """An agent that has just come up and found in its memory what belongs on `machine`."""
    plain = AgentReport(name, f"{name}.1", name.startswith("spare"), f"{name}:1")
    if machine is None:
        return plain
    held = {str(rank): (iteration,) for rank in SPEC.ranks_held_by(machine)}
    return replace(plain, holdings=held)


def began(spec: JobSpec, reports: list[AgentReport], now_s: float = 0.0) -> list[object]:
    made = Root(spec, Office(7, None, 0, reports), 0.0)
    return list(made.handle(Tick(), now_s))


GROUPS = replace(SPEC, machines=8, replicas=place("group", 8, 2).replicas)


def together(spec: JobSpec, found: dict[int, AgentReport]) -> int:
    """How many pairs of copies lie in one domain."""
    return sum(
        found[row[0]].domain == found[other].domain != ""
        for row in spec.replicas
        for other in row[1:]
        if row[0] in found and other in found
    )


@given(st.lists(st.sampled_from("abcd"), min_size=8, max_size=8))
def test_copies_are_kept_in_different_domains_wherever_that_is_possible(racks: list[str]) -> None:
    free = [replace(idle(f"a-{n}"), domain=rack) for n, rack in enumerate(racks)]
    found = seats(GROUPS, free, range(8))
    assert {report.agent for report in found.values()} == {report.agent for report in free}
    # Of a rank with more than half of the machines, some copies have to lie together.
    largest = max(map(racks.count, racks))
    assert together(GROUPS, found) == 2 * max(0, largest - 4)


def test_machines_in_order_stay_in_order_where_that_keeps_copies_apart() -> None:
    apart = replace(
        GROUPS, replicas=place("domains", 8, 2, domains=[0, 0, 0, 0, 1, 1, 1, 1]).replicas
    )
    free = [replace(idle(f"a-{n}"), domain=f"rack-{n // 4}") for n in range(8)]
    assert [report.agent for report in seats(apart, free, range(8)).values()] == [
        f"a-{n}" for n in range(8)
    ]


def test_a_lost_machine_is_filled_from_a_domain_that_has_no_other_copy() -> None:
    free = [replace(idle(name), domain=rack) for name, rack in (("s-0", "b"), ("s-1", "a"))]
    there = {machine: "b" if machine == 1 else "c" for machine in range(1, 8)}
    assert seats(GROUPS, free, [0], there)[0].agent == "s-1"
    # Not at the price of another script: training would wait for it to be the same everywhere.
    other = [replace(free[0], script="one"), replace(free[1], script="two")]
    assert seats(GROUPS, other, [0], there)[0].agent == "s-0"
    # Nor where its parts are.
    kept = [replace(free[0], holdings={"0": (9,), "1": (9,)}), free[1]]
    assert seats(GROUPS, kept, [0], there)[0].agent == "s-0"


def test_a_root_seats_who_comes_by_domains_and_fills_up_by_them() -> None:
    spec = replace(SPEC, replicas=place("group", 4, 2).replicas)
    reports = [replace(idle(name), domain=f"rack-{n // 2}") for n, name in enumerate(NAMES)]
    (write,) = began(spec, reports)
    assert isinstance(write, WritePlan)
    rack_of = {report.agent: report.domain for report in reports}
    for row in spec.replicas:
        assert len({rack_of[write.plan.agents[machine]] for machine in row}) == 2


def test_a_root_fills_up_from_a_domain_that_has_no_other_copy() -> None:
    spec = replace(SPEC, replicas=place("group", 4, 2).replicas)
    trained = [replace(idle(name), domain=f"rack-{n % 2}") for n, name in enumerate(NAMES)]
    (write,) = began(spec, trained)
    assert isinstance(write, WritePlan)
    lost = write.plan.agents[0]
    partner = next(one for one in trained if one.agent == write.plan.agents[1])
    other = "rack-0" if partner.domain == "rack-1" else "rack-1"
    spares = [
        replace(idle("spare-0"), domain=partner.domain),
        replace(idle("spare-1"), domain=other),
    ]
    known = {one.agent: one for one in trained if one.agent != lost}
    filled, _ = Filling(spec, 7).fill(write.plan, known, spares, 0.0, 0.0)
    assert filled.agents[0] == "spare-1"


@given(st.permutations(range(4)))
def test_a_job_that_goes_on_finds_its_parts_whatever_its_agents_are_called(
    order: list[int],
) -> None:
    reports = [idle(name, machine) for name, machine in zip(NAMES, order, strict=True)]
    (write,) = began(replace(SPEC, resumes=6), reports)
    assert isinstance(write, WritePlan)
    plan = write.plan
    assert (plan.generation, plan.phase, plan.attempts) == (7, Phase.GATHER, 0)
    assert plan.agents == tuple(NAMES[order.index(machine)] for machine in range(4))


def test_no_generation_is_begun_that_left_something_in_memory() -> None:
    """Seed 11542 of `castor explore`: the store lost all, and every agent had been restarted."""
    left = replace(idle("node-0", 0), left_generation=8)
    reports = [left, *map(idle, NAMES[1:])]
    for resumes in (0, 1):
        told = began(replace(SPEC, resumes=resumes), [*reports, idle("node-1", 2)])
        (write,) = [effect for effect in told if isinstance(effect, WritePlan)]
        assert write.plan.generation == 9


def test_who_holds_nothing_takes_what_is_left() -> None:
    found = seats(SPEC, [idle("a-0"), idle("a-1", 3), idle("a-2", 0)], [0, 2, 3])
    assert {machine: report.agent for machine, report in found.items()} == {
        0: "a-2",
        2: "a-0",
        3: "a-1",
    }
    assert seats(SPEC, [idle("a-0", 1)], []) == {}
    assert [r.agent for r in seats(SPEC, [idle("a-0")], [1, 2]).values()] == ["a-0"]


def test_what_agents_report_of_a_generation_is_no_claim_to_a_machine() -> None:
    gathered = replace(idle("a-0", 3), state=State.GATHERED, generation=4)
    assert not holds_parts(gathered)
    assert kept_iteration(SPEC, [gathered]) == 0


def test_a_standby_that_holds_parts_counts_from_the_start() -> None:
    reports = [idle(name, machine) for machine, name in enumerate((*NAMES[:3], "spare-0"))]
    (write,) = began(replace(SPEC, resumes=1), reports)
    assert isinstance(write, WritePlan)
    assert write.plan.agents == (*NAMES[:3], "spare-0")


def test_a_job_that_goes_on_waits_for_what_it_goes_on_from_and_not_for_ever() -> None:
    """To begin without would be to give up what others hold; they keep it (invariant 17)."""
    spec = replace(SPEC, resumes=3)
    made = Root(spec, Office(7, None, 0, [idle(name) for name in NAMES]), 0.0)
    assert list(made.handle(Tick(), BEGIN_WITHOUT_S + 1)) == []
    (write,) = made.handle(Tick(), spec.recovery.gather_s)
    assert isinstance(write, WritePlan)
    assert (write.plan.phase, write.plan.generation) == (Phase.FAILED, 4)
    assert "start those that hold it" in write.plan.reason
    made = Root(spec, Office(7, None, 0, [idle("a-0", 0), *map(idle, NAMES[1:])]), 0.0)
    assert list(made.handle(Tick(), 1.0)) == []
    (write,) = made.handle(ReportChanged("spare-9", idle("spare-9", 2)), 2.0)
    assert isinstance(write, WritePlan)
    assert write.plan.agents[0] == "a-0"
    assert write.plan.agents[2] == "spare-9"


def test_a_new_job_begins_as_before() -> None:
    (write,) = began(SPEC, [idle(name) for name in NAMES])
    assert isinstance(write, WritePlan)
    assert (write.plan.generation, write.plan.agents, write.plan.reason) == (1, NAMES, "start")


@given(
    st.integers(2, 3),
    st.lists(st.sampled_from("abcd"), min_size=3, max_size=10),
)
def test_what_a_placement_was_made_for_is_seated_no_worse_than_it_was_meant(
    replicas: int, racks: list[str]
) -> None:
    rows = place("domains", len(racks), replicas, domains=list(map(ord, racks))).replicas
    spec = replace(SPEC, machines=len(racks), replicas=rows)
    free = [replace(idle(f"a-{n:02}"), domain=rack) for n, rack in enumerate(racks)]
    found = seats(spec, free, range(len(racks)))
    meant = copies_together(spec, dict(enumerate(racks)))
    seated = {machine: report.domain for machine, report in found.items()}
    assert len(copies_together(spec, seated)) <= len(meant)


def test_a_plan_that_has_to_seat_copies_together_says_which_and_where() -> None:
    spec = replace(SPEC, replicas=place("group", 4, 2).replicas)
    reports = [replace(idle(name), domain=rack) for name, rack in zip(NAMES, "aaab", strict=True)]
    root = Root(spec, Office(7, None, 0, reports), 0.0)
    (write,) = root.handle(Tick(), 0.0)
    assert isinstance(write, WritePlan)
    (told, *_) = root.handle(PlanChanged(write.plan, 1), 0.0)
    assert isinstance(told, Log)
    event = told.event
    assert isinstance(event, CopiesTogether)
    assert (len(event.shards), event.domains) == (2, ("a",))
    assert "are in one failure domain (a)" in event.message
    rack_of = {report.agent: report.domain for report in reports}
    for shard in event.shards:
        assert {rack_of[write.plan.agents[m]] for m in spec.replicas[shard]} == {"a"}


def test_a_standby_whose_arrival_brings_copies_together_is_told_of_once() -> None:
    def told_of(standby: str) -> list[CopiesTogether]:
        agents = ("gone", "a-1", *(f"a-{n}" for n in range(2, 8)))
        plan = Plan(3, 7, Phase.GATHER, agents, tuple(f"{one}.1" for one in agents))
        known = {
            one: replace(idle(one), domain="b" if one == "a-1" else f"own-{one}")
            for one in agents[1:]
        }
        free = [replace(idle("s-0"), domain=standby)]
        filled, effects = Filling(GROUPS, 7).fill(plan, known, free, 0.0, 0.0)
        again = Filling(GROUPS, 7).fill(filled, known | {"s-0": free[0]}, [], 0.0, 0.0)[1]
        events = [one.event for one in (*effects, *again) if isinstance(one, Log)]
        return [event for event in events if isinstance(event, CopiesTogether)]

    (event,) = told_of("b")
    assert (event.shards, event.domains) == ((0, 1), ("b",))
    assert told_of("c") == []
    assert told_of("") == []

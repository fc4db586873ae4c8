"""Who is named for a failure: the one that it began with, or nobody; never a bystander."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.culprit import Verdict, judge, window_s
from castor_policy.agents.effects import Log, WritePlan
from castor_policy.agents.events import PlanChanged, ReportChanged, Tick
from castor_policy.agents.evidence import Sight, SightKind, sight_of_end, tells_of_lost_peer
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.root import Root
from castor_policy.agents.standstill import standstill
from castor_policy.membership import WatchLimits
from castor_policy.placement import place
from castor_records.events.failures import Detected

NAMES = ("node-0", "node-1", "node-2", "node-3")
SPEC = JobSpec(
    "j", 4, 1, "group", place("mixed", 4, 2).replicas, "t.py", limits=WatchLimits(lease_s=4.0)
)
GLOO = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed "
    "by peer [127.0.0.1]:30215"
)


def member(machine: int, *seen: Sight, **fields: object) -> AgentReport:
    state = State.FAILED if seen else State.RUNNING
    name = NAMES[machine]
    made = AgentReport(name, f"{name}.1", False, f"{name}:1", generation=1, state=state, seen=seen)
    return replace(made, **fields)


def lost_peer(rank: int) -> Sight:
    return sight_of_end(rank, 1, GLOO, lost_peer=True)


def killed(rank: int) -> Sight:
    return sight_of_end(rank, -9, "")


def finished(machine: int) -> AgentReport:
    return member(machine, state=State.FINISHED, ended=(machine,))


def verdict(
    members: Sequence[AgentReport], lost: Mapping[int, str] | None = None, spec: JobSpec = SPEC
) -> Verdict:
    told = {NAMES.index(one.agent): one for one in members}
    plan = Plan(1, 7, Phase.LOAD, NAMES, tuple(f"{name}.1" for name in NAMES), iteration=5)
    return judge(spec, plan, lost or {}, told, standstill(spec, members))


def named(found: Verdict) -> list[tuple[int, int, str]]:
    return [(one.machine, one.rank, one.kind) for one in found.culprits]


# ---- what is seen, and who is named --------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_killed_trainer_is_named_in_whatever_order_its_end_and_its_symptoms_come(
    order: Sequence[int],
) -> None:
    """One kill of rank 1 in three was booked on rank 0, whose socket failed a moment sooner."""
    told = [member(machine) for machine in range(4)]
    for position, machine in enumerate(order):
        told[machine] = member(machine, killed(1) if machine == 1 else lost_peer(machine))
        found = verdict(told)
        if 1 in order[: position + 1]:
            assert named(found) == [(1, 1, "signal")]
            assert found.certain
        else:
            assert named(found) == []
            assert not found.certain
    assert len(found.others) == 3
    assert all("Connection closed" in other for other in found.others)


def test_connections_that_broke_without_a_cause_name_nobody() -> None:
    found = verdict([member(machine, lost_peer(machine)) for machine in range(4)])
    assert named(found) == []
    assert found.certain
    assert found.reason.startswith("what failed is not known; machine 0: rank 0 exited with code 1")


def test_an_error_of_its_own_comes_before_a_lost_connection_but_waits_for_a_signal() -> None:
    own = sight_of_end(2, 1, "ValueError: no such corpus")
    told = [member(0, lost_peer(0)), member(1), member(2, own), member(3, lost_peer(3))]
    found = verdict(told)
    assert named(found) == [(2, 2, "exit")]
    assert not found.certain
    found = verdict([*told[:1], member(1, killed(1)), *told[2:]])
    assert named(found) == [(1, 1, "signal")]
    assert "machine 2: rank 2 exited with code 1: ValueError: no such corpus" in found.others


def test_a_lost_lease_comes_first_and_beside_it_only_what_was_killed_from_outside() -> None:
    told = [member(0, sight_of_end(0, 1, "odd")), member(2, lost_peer(2)), member(3, killed(3))]
    found = verdict(told, {1: SightKind.LEASE})
    assert named(found) == [(1, -1, "lease"), (3, 3, "signal")]
    assert found.certain
    assert found.culprits[0].cause == "the lease of agent node-1 expired"


def test_an_agent_that_was_restarted_took_its_trainers_with_it() -> None:
    told = [member(machine, lost_peer(machine)) for machine in (0, 2, 3)]
    assert named(verdict(told, {1: SightKind.AGENT})) == [(1, -1, "agent")]


def test_who_left_is_named_though_some_only_wait_for_those_that_it_cut_off() -> None:
    """In place nobody's trainers end, and connections break to who left, not to who waits."""
    told = [member(0, lost_peer(0)), member(1), member(2, lost_peer(2)), finished(3)]
    found = verdict(told)
    assert named(found) == [(3, 3, "left")]
    assert not found.certain  # who waits may have more to say
    assert found.culprits[0].cause == "rank 3 exited with code 0 while others still trained"
    # Whom somebody cannot reach, and who has not come to this generation, may have broken them.
    for other in (replace(told[0], unreached=("node-1.1",)), told[0]):
        behind = member(1, generation=0) if other is told[0] else member(1)
        assert (3, 3, "left") not in named(verdict([other, behind, *told[2:]]))
    assert named(verdict([member(0), member(1), member(2), finished(3)])) == []


def test_a_silent_agent_that_others_cannot_reach_is_named_where_nothing_better_is() -> None:
    """Trainers that lost a killed agent's were quicker than its restart: nobody was named."""
    told = [member(machine, lost_peer(machine)) for machine in (0, 2, 3)]
    told[1] = replace(told[1], unreached=("node-1.1",))
    found = verdict([told[0], member(1), *told[1:]])
    assert named(found) == [(1, -1, "agent")]
    assert not found.certain  # its lease may end, or what it restarts as may say more
    assert found.culprits[0].cause == "agent node-1 does not answer"
    assert len(found.others) == 3
    # What it tells by itself comes first, and so does what another one does.
    assert named(verdict([told[0], member(1, killed(1)), *told[1:]])) == [(1, 1, "signal")]
    own = sight_of_end(3, 1, "ValueError: no such corpus")
    assert named(verdict([told[0], member(1), told[1], member(3, own)])) == [(3, 3, "exit")]
    # Who says it and is silent himself may be the one that is cut off.
    cut_off = member(2, unreached=("node-1.1",))
    assert named(verdict([told[0], member(1), cut_off, told[2]])) == []
    # Of a life that had no part in the generation it says nothing.
    old = replace(told[1], unreached=("node-1.0",))
    assert named(verdict([told[0], member(1), old, told[2]])) == []


def test_an_error_on_every_rank_names_all_of_them() -> None:
    told = [member(m, sight_of_end(m, 1, "SyntaxError: bad")) for m in range(4)]
    found = verdict(told)
    assert len(found.culprits) == 4
    assert "more" not in found.reason


def test_a_failure_of_a_thousand_machines_is_told_in_a_few_words() -> None:
    names = tuple(f"node-{machine}" for machine in range(1000))
    rows = place("mixed", 1000, 2).replicas
    spec = JobSpec("j", 1000, 1, "group", rows, "t.py")
    plan = Plan(1, 7, Phase.LOAD, names, tuple(f"{name}.1" for name in names))
    error = "SyntaxError: " + "x" * 300
    told = [
        AgentReport(
            name, f"{name}.1", False, "", 1, State.FAILED, seen=(sight_of_end(m, 1, error),)
        )
        for m, name in enumerate(names)
    ]
    effects = Root(spec, Office(7, plan, 10, told), 0.0).handle(Tick(), 1.0)
    following = written(effects)
    assert following is not None
    assert following.reason.endswith("and 996 more")
    assert following.failures == ()
    assert len(following.to_json()) < 100_000


def test_a_rank_that_left_with_code_0_is_named_once_all_others_lost_their_connection() -> None:
    told = [member(0, lost_peer(0)), finished(1), member(2, lost_peer(2)), member(3)]
    assert not verdict(told).certain
    found = verdict([*told[:3], member(3, lost_peer(3))])
    assert named(found) == [(1, 1, "left")]
    assert found.certain
    assert found.culprits[0].cause == "rank 1 exited with code 0 while others still trained"


def test_who_has_finished_is_no_culprit_where_most_have_or_where_another_failed() -> None:
    done = [finished(machine) for machine in (0, 1, 2)]
    assert named(verdict([*done, member(3, lost_peer(3))])) == []
    assert named(verdict([*done, member(3, killed(3))])) == [(3, 3, "signal")]
    stands = [member(m, standing={str(m): (3, 7, 9)}) for m in (2, 3)]
    found = verdict([finished(0), finished(1), *stands])
    assert named(found) == []
    assert "machine 0: rank 0 exited with code 0" in found.others


def test_an_exit_with_0_before_training_had_ended_is_a_failure_of_its_own() -> None:
    left = sight_of_end(1, 0, "", left_early=True)
    told = [member(0, lost_peer(0)), member(1, left), member(2), member(3)]
    assert named(verdict(told)) == [(1, 1, "exit")]
    assert left.text() == "rank 1 exited with code 0 before it had finished training"


def test_where_all_stand_still_the_rank_that_did_not_come_is_named_if_there_is_one() -> None:
    stands = [member(m, standing={str(m): (3, 7, 9)}) for m in range(4)]
    found = verdict(stands)
    assert named(found) == []
    assert found.certain
    assert found.others[-1].startswith("no rank goes on")
    stands[1] = member(1, standing={"1": (3, 7, 8)})
    found = verdict(stands)
    assert named(found) == [(1, 1, "stall")]
    assert found.certain


def test_two_ranks_of_one_machine_are_told_apart() -> None:
    spec = replace(SPEC, machines=2, ranks_per_machine=2, replicas=((0, 1), (1, 0)))
    told = [member(0, lost_peer(0), lost_peer(1)), member(1, lost_peer(2))]
    assert not verdict(told, spec=spec).certain
    told[1] = member(1, lost_peer(2), killed(3))
    assert named(verdict(told, spec=spec)) == [(1, 3, "signal")]


def test_reports_of_other_generations_say_nothing() -> None:
    told = [member(0, lost_peer(0)), member(1, killed(1), generation=0), member(2), member(3)]
    assert named(verdict(told)) == []


SIGHTS = st.sampled_from(["killed", "lost", "own", "still", "done", "silent", "gone"])


def _shown(machine: int, kind: str) -> AgentReport:
    sights = {
        "killed": killed(machine),
        "lost": lost_peer(machine),
        "own": sight_of_end(machine, 1, "ValueError"),
        "still": Sight(machine, "hang", "stood still"),
    }
    if kind == "done":
        return finished(machine)
    return member(machine, *([sights[kind]] if kind in sights else []))


@given(st.lists(SIGHTS, min_size=4, max_size=4))
def test_a_symptom_never_names_its_own_rank(kinds: list[str]) -> None:
    told = [_shown(machine, kind) for machine, kind in enumerate(kinds) if kind != "gone"]
    lost = {m: SightKind.LEASE for m, kind in enumerate(kinds) if kind == "gone"}
    found = verdict(told, lost)
    for machine, _, _ in named(found):
        assert kinds[machine] in ("killed", "own", "still", "gone", "done")
    if "killed" in kinds or "gone" in kinds:
        causes = {m for m, kind in enumerate(kinds) if kind in ("killed", "gone")}
        assert {machine for machine, _, _ in named(found)} == causes
        assert found.certain
    assert len(found.culprits) + len(found.others) == sum(kind != "silent" for kind in kinds)


# ---- how a trainer's end is read -----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        GLOO,
        "torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:2251",
        "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms",
        "terminate called after throwing an instance of 'gloo::IoException'\n"
        "  what():  [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Read error: reset",
        "RuntimeError: [1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] "
        "via c10d key-value store by store->get('0'), but store->get('0') got error: closed",
        "[rank1]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)",
        "castor_runtime.trainer.swap.errors.LostRankError: allreduce: the generation has ended",
        "ValueError: training failed\nRuntimeError: gloo/transport/tcp/pair.cc: Broken pipe\n",
    ],
)
def test_what_torch_says_once_a_peer_has_gone_is_known(text: str) -> None:
    assert tells_of_lost_peer(text)


@pytest.mark.parametrize(
    "text",
    [
        "ConnectionResetError: [Errno 104] Connection reset by peer",  # a script's own server
        "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed.",
        "torch.cuda.OutOfMemoryError: CUDA out of memory.",
        "ModuleNotFoundError: No module named 'datasets'",
        # Case c04: a script that only leaves, after what transports say while they start.
        "[Gloo] Rank 1 is connected to 1 peer ranks\n[W socket.cpp:752] [c10d] TCPStore: slow\n",
        "using ProcessGroupGloo with TCPStore and NCCL absent\niteration 5 done",
        "",
    ],
)
def test_a_scripts_own_errors_are_its_own(text: str) -> None:
    assert not tells_of_lost_peer(text)


@pytest.mark.parametrize(
    ("code", "lost", "kind"),
    [
        (-9, False, "signal"),
        (-15, True, "signal"),
        (-6, True, "connection"),  # NCCL's watchdog aborts a process whose peer has gone
        (-6, False, "exit"),
        (-11, False, "exit"),
        (1, True, "connection"),
        (1, False, "exit"),
        (0, False, "left"),
    ],
)
def test_a_signal_from_outside_is_told_from_a_crash_and_from_a_symptom(
    code: int, lost: bool, kind: str
) -> None:
    assert sight_of_end(0, code, "words", lost_peer=lost).kind == kind


# ---- the root waits for better evidence, and not for long ----------------------------------------


def root() -> Root:
    lives = tuple(f"{name}.1" for name in NAMES)
    plan = Plan(1, 7, Phase.LOAD, NAMES, lives, iteration=5)
    return Root(SPEC, Office(7, plan, 10, [member(machine) for machine in range(4)]), 0.0)


def written(effects: Sequence[object]) -> Plan | None:
    return next((effect.plan for effect in effects if isinstance(effect, WritePlan)), None)


def told_of(made: Root, plan: Plan) -> list[Log]:
    """What the root tells once the store holds the plan that it wrote."""
    seen = made.handle(PlanChanged(plan, 11), 9.0)
    return [effect for effect in seen if isinstance(effect, Log)]


def test_it_waits_for_weak_evidence_and_acts_at_once_on_a_signal() -> None:
    made = root()
    assert not made.handle(ReportChanged("node-0", member(0, lost_peer(0))), 1.0)
    plan = written(made.handle(ReportChanged("node-1", member(1, killed(1))), 1.1))
    assert plan is not None
    assert [(one.machine, one.rank) for one in plan.culprits] == [(1, 1)]
    assert plan.seen == (f"machine 0: rank 0 exited with code 1: {GLOO}",)
    (log,) = told_of(made, plan)
    assert isinstance(log.event, Detected)
    assert (log.event.machine, log.event.rank, log.event.how) == (1, 1, "signal")
    assert log.event.seen == plan.seen


def test_after_the_window_it_goes_on_without_a_name() -> None:
    made = root()
    assert not made.handle(ReportChanged("node-0", member(0, lost_peer(0))), 1.0)
    assert not made.handle(Tick(), 1.0 + window_s(SPEC) - 0.01)
    plan = written(made.handle(Tick(), 1.0 + window_s(SPEC)))
    assert plan is not None
    assert (plan.generation, plan.culprits) == (2, ())
    (log,) = told_of(made, plan)
    assert isinstance(log.event, Detected)
    assert (log.event.machine, log.event.how) == (None, "unknown")


def test_the_window_is_short_beside_a_lease() -> None:
    assert window_s(SPEC) == 1.0
    assert window_s(replace(SPEC, limits=WatchLimits(lease_s=1.0))) == 0.25


def test_a_lease_that_expires_later_names_the_machine_after_all() -> None:
    made = root()
    made.handle(ReportChanged("node-0", member(0, lost_peer(0))), 1.0)
    gathering = written(made.handle(Tick(), 3.0))
    assert gathering is not None
    made.handle(PlanChanged(gathering, 11), 3.1)
    effects = made.handle(ReportChanged("node-2", None), 5.0)
    plan = written(effects)
    assert plan is not None
    assert [(one.machine, one.kind) for one in plan.culprits] == [(2, "lease")]
    assert Plan.from_json(plan.to_json()) == plan

"""Fault schedules of the soak: the same for a seed everywhere, and rightly held for survivable."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_lab.faults.fault import AtIteration, Fault, FaultKind, parse_fault
from castor_lab.soak.campaign import Case, Shape, case_of, judge
from castor_lab.soak.schedule import APART, Schedule, draw, survives_in_memory
from castor_lab.soak.trial import Trial
from castor_policy.placement import place
from castor_records.events.event import Entry
from castor_records.events.training import IterationEnded

PAIRS = place("mixed", 4, 2)


def faults(*texts: str) -> list[Fault]:
    return [parse_fault(text, machines=4, ranks_per_machine=1) for text in texts]


@given(seed=st.integers(0, 2**32))
def test_a_seed_is_one_schedule_that_castor_train_understands(seed: int) -> None:
    schedule = draw(seed, PAIRS, 1, 24)
    assert schedule == draw(seed, PAIRS, 1, 24)
    assert 1 <= len(schedule.faults) <= 5
    own_store = [fault for fault in schedule.faults if fault.needs_own_store]
    assert len(own_store) <= 1
    assert faults(*map(str, schedule.faults)) == [
        fault if "/" in str(fault) else parse(fault) for fault in schedule.faults
    ]
    assert all(
        1 < fault.when.iteration <= 24 - APART
        for fault in schedule.faults
        if isinstance(fault.when, AtIteration)
    )


def parse(fault: Fault) -> Fault:
    return parse_fault(str(fault), machines=4, ranks_per_machine=1)


def test_seeds_draw_all_that_can_fail() -> None:
    schedules = [draw(seed, PAIRS, 1, 24) for seed in range(200)]
    links = {FaultKind.LINK, FaultKind.SLOW}  # of an emulated cluster, which needs root
    assert {f.kind for s in schedules for f in s.faults} == set(FaultKind) - links
    assert {type(f.when).__name__ for s in schedules for f in s.faults} == {
        "AtIteration",
        "AtRecovery",
        "AtTime",
    }
    assert {len(s.faults) for s in schedules} == {1, 2, 3, 4, 5}
    assert 0.5 < sum(s.memory_survives for s in schedules) / 200 < 0.95


@pytest.mark.parametrize(
    ("texts", "survives"),
    [
        (["machine:2@10"], True),
        (["machine:0,2@10"], True),
        (["machine:0,1@10"], False),
        (["machine:0@10", "machine:1@12"], False),
        (["machine:0@10", "machine:1@13"], True),
        (["machine:0@10", "machine:1@recovery"], False),
        (["machine:0@10", "rank:1@recovery", "agent:1@10", "stop:1@11", "store@9"], True),
        (["machine:0@10", "flip:1@11"], False),
        (["root@10"], True),
        (["root@10", "machine:3@11"], False),
        (["root@10", "root@14"], True),
        (["root@10", "root@2s"], False),
        (["agentstop:0@2", "machine:1@20"], False),
        (["agentstop:0@2", "machine:2@20"], True),
        (["forkstop:0@2", "machine:1@20"], False),
        (["forkstop:0@10", "wipe@10", "storagehang@9", "storagefull@8", "twin:1@10"], True),
        (["machine:0@10", "stranger@10", "wipe@11"], True),
    ],
)
def test_what_memory_survives(texts: list[str], survives: bool) -> None:
    assert survives_in_memory(faults(*texts), PAIRS) is survives


def test_a_seed_keeps_what_it_drew_before_later_kinds_were_known() -> None:
    before = "--kill rank:1@10 --kill rank:2@2 --kill flip:2@3 --kill stop:3@recovery"
    assert str(draw(9008, PAIRS, 1, 24)) == f"{before} --kill forkstop:2@17"
    later = {FaultKind.FORKSTOP, FaultKind.WIPE, FaultKind.STORAGEHANG, FaultKind.STORAGEFULL}
    later |= {FaultKind.TWIN, FaultKind.STRANGER}
    for seed in range(300):
        found = [fault.kind in later for fault in draw(seed, PAIRS, 1, 24).faults]
        assert sum(found) <= 1
        assert not any(found[:-1])


@given(seed=st.integers(0, 2**32), shape=st.sampled_from([(4, 1), (2, 2)]))
def test_a_second_agent_of_a_name_comes_where_the_first_one_lives(seed: int, shape) -> None:
    machines, ranks = shape
    found = draw(seed, place("mixed", machines, 2), ranks, 24).faults
    for fault in found:
        if fault.kind == FaultKind.TWIN:
            others = [other for other in found if other is not fault]
            assert all(other.kind != FaultKind.ROOT for other in others)
            of_ranks = (FaultKind.RANK, FaultKind.STOP)
            struck = {
                int(t) // ranks if other.kind in of_ranks else int(t)
                for other in others
                for t in other.targets
            }
            assert fault.targets[0] not in struck


def test_three_replicas_survive_any_two_machines() -> None:
    placement = place("mixed", 4, 3)
    for lost in itertools.combinations(range(4), 2):
        assert survives_in_memory(faults(f"machine:{lost[0]},{lost[1]}@5"), placement)
    for lost in itertools.combinations(range(4), 3):
        together = survives_in_memory(faults(f"machine:{','.join(map(str, lost))}@5"), placement)
        assert together == all(not set(row) <= set(lost) for row in placement.replicas)


def test_a_run_too_short_for_a_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="use 9 or more"):
        case_of(0, 8)


def trial(lost: int = 1, **changes: object) -> Trial:
    recovery = {
        "kind": "hardware",
        "iterations_lost": lost,
        "sources": {"0": "peer:node-1", "1": "own_memory"},
        "seconds": {"total": 3.0},
    }
    result: dict[str, object] = {
        "outcome": "finished",
        "iterations": 24,
        "final_state_sha256": "right",
        "recoveries": [recovery],
        "wall_s": 20.0,
        "kept_memory": None,
    }
    found = {"code": 0, "processes_left": (), "memory_left": ()} | {
        key: value for key, value in changes.items() if key not in result
    }
    result |= {key: value for key, value in changes.items() if key in result}
    return Trial(Path(), output="", result=result, events=(), **found)  # type: ignore[arg-type]


def test_a_verdict_says_all_that_is_wrong() -> None:
    case = Case(Shape(4, 1, 2, 0), Schedule(3, tuple(faults("machine:2@10")), True), 24)
    assert judge(case, trial(), "right").wrong == ()
    assert judge(case, trial(), "right").recoveries[0]["sources"] == ["own_memory", "peer"]
    for wrong, said in (
        (trial(code=1, outcome="failed"), "exit code 1"),
        (trial(final_state_sha256="other"), "final state other, not right"),
        (trial(final_state_sha256=None), "final state None"),
        (trial(iterations=23), "ended at iteration 23"),
        (trial(processes_left=("python",)), "left processes: python"),
        (trial(memory_left=("castor-x",)), "castor-x"),
        (trial(lost=2), "iterations lost: [2]"),
    ):
        (only,) = judge(case, wrong, "right").wrong
        assert said in only
    # A job that gave up keeps its memory, where result.json says so, and only there.
    kept = {"run": "0" * 16, "iteration": 4}
    gave_up = trial(code=1, outcome="failed", memory_left=("castor-x",), kept_memory=kept)
    (only,) = judge(case, gave_up, "right").wrong
    assert "exit code 1" in only
    (only,) = judge(case, trial(kept_memory=kept), "right").wrong
    assert "and none is there" in only
    anew = Case(case.shape, Schedule(3, case.schedule.faults, False), 24)
    assert judge(anew, trial(lost=9), "right").wrong == ()


@pytest.mark.parametrize(
    ("let_in_s", "machine", "right"), [(5.0, None, False), (20.5, None, True), (20.5, 1, False)]
)
def test_a_stranger_is_let_in_only_once_training_is_over(
    tmp_path: Path, let_in_s: float, machine: int | None, right: bool
) -> None:
    """Seeds 9136 and 9160: a second agent of a name that came up when the job had just finished."""
    record = tmp_path / "strangers" / "twin-of-node-0" / "agent.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"machine": machine}))
    os.utime(record, ns=(0, 10**18 + round(let_in_s * 1e9)))
    (tmp_path / "run.json").write_text(json.dumps({"started_ns": 10**18}))
    last = Entry(20 * 10**9, IterationEnded(generation=1, rank=0, iteration=24))
    case = Case(Shape(4, 1, 2, 0), Schedule(3, tuple(faults("twin:0@21")), True), 24)
    came = trial()
    result = {**came.result, "strangers": {"twin-of-node-0": 0}}
    verdict = judge(case, replace(came, folder=tmp_path, events=(last,), result=result), "right")
    assert (verdict.wrong == ()) is right

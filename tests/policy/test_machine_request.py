"""When a request for a machine is served, waited for, or taken out."""

from __future__ import annotations

import pytest

from castor_policy.agents.machine_request import (
    AGAIN_MAX_S,
    Progress,
    Served,
    Step,
    again_s,
    is_needed,
    next_step,
)
from castor_policy.agents.plan import Phase, Plan

PLAN = Plan(3, 7, Phase.GATHER, ("a", ""), ("a.1", ""))


def step(progress: Progress | None, since_s: float, **how: bool) -> tuple[Step, float]:
    served = None if progress is None else Served("3-1", progress, 3, 1000.0, "spare-3-1-3")
    given = {"needed": True, "arrived": False, **how}
    return next_step(served, **given, now_s=1000.0 + since_s, patience_s=60.0)


@pytest.mark.parametrize(
    ("progress", "since_s", "how", "expected"),
    [
        (None, 0.0, {}, (Step.ASK, 0.0)),
        (None, 0.0, {"needed": False}, (Step.DROP, 0.0)),
        (Progress.FAILED, 1.0, {}, (Step.WAIT, 3.0)),
        (Progress.FAILED, 4.0, {}, (Step.ASK, 0.0)),
        (Progress.FAILED, 9.0, {"needed": False}, (Step.DROP, 0.0)),
        (Progress.ASKING, 59.0, {}, (Step.WAIT, 1.0)),
        (Progress.ASKING, 60.0, {}, (Step.ASK, 0.0)),
        (Progress.COMING, 59.0, {}, (Step.DROP, 0.0)),
        (Progress.COMING, 60.0, {}, (Step.ASK, 0.0)),
        (Progress.COMING, 1.0, {"arrived": True}, (Step.ASK, 0.0)),
    ],
)
def test_the_next_step(
    progress: Progress | None, since_s: float, how: dict[str, bool], expected: tuple[Step, float]
) -> None:
    assert step(progress, since_s, **how) == expected


def test_attempts_come_further_and_further_apart_up_to_a_bound() -> None:
    assert [again_s(attempts) for attempts in (1, 2, 3, 8, 9, 10, 10_000)] == [
        *(1.0, 2.0, 4.0, 128.0, 256.0, AGAIN_MAX_S, AGAIN_MAX_S)
    ]


@pytest.mark.parametrize(
    ("request_", "plan", "needed"),
    [
        ("0-1", None, True),
        ("0-1", PLAN, False),
        ("3-1", PLAN, True),
        ("4-1", PLAN, True),
        ("2-1", PLAN, False),
        ("3-1", Plan(3, 7, Phase.LOAD, ("a", "b"), ("a.1", "b.1")), False),
    ],
)
def test_what_is_needed(request_: str, plan: Plan | None, needed: bool) -> None:
    assert is_needed(plan, request_) is needed

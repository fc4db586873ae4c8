"""Two hosts that were given a job: the same one, or in what it is another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.same_job import differences

SPEC = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), "/train.py", ("--lr", "1"))


def other(value: Any) -> Any:
    """Return a value of the same kind that differs."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return f"{value}x"
        case _:
            return (*value, *value)


def test_what_a_run_adds_makes_no_other_job() -> None:
    made = replace(SPEC, run="0123456789abcdef", started_ns=7, credentials="secret:00:00")
    assert differences(SPEC, made) == []
    assert differences(made, SPEC) == []


@pytest.mark.parametrize("name", ["machines", "script", "arguments", "allow_changed_script"])
def test_what_a_person_says_does(name: str) -> None:
    there = replace(SPEC, **{name: other(getattr(SPEC, name))})
    (told,) = differences(SPEC, there)
    assert told.startswith(f"{name} is {getattr(SPEC, name)!r} here and ")


def test_an_option_is_told_by_its_key() -> None:
    there = replace(SPEC, traffic=replace(SPEC.traffic, mu=0.5), arguments=())
    assert sorted(differences(SPEC, there)) == [
        "arguments is ('--lr', '1') here and () in the job",
        "traffic.mu is 0.9 here and 0.5 in the job",
    ]

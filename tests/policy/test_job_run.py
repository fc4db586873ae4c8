"""Which run of a name a job is: what memory, messages and processes are told apart by."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from castor_policy.agents.job_spec import PROTOCOL, JobSpec

SPEC = JobSpec("job", 2, 1, "group", ((0, 1), (1, 0)), "train.py", run="0123456789abcdef")


def test_a_run_is_known_by_its_id_and_keeps_it_in_the_store() -> None:
    assert JobSpec.from_json(SPEC.to_json()) == SPEC
    assert json.loads(SPEC.to_json())["run"] == "0123456789abcdef"


def test_jobs_made_at_different_times_are_different_runs_also_where_nobody_said_so() -> None:
    first, second = (replace(SPEC, run="", started_ns=ns) for ns in (1, 2))
    assert (first.run, second.run) == ("0000000000000001", "0000000000000002")


@pytest.mark.parametrize("run", ["x", "0123456789ABCDEF", "0123456789abcde", " 123456789abcdef"])
def test_what_is_no_id_is_refused(run: str) -> None:
    with pytest.raises(ValueError, match="16 hex digits"):
        replace(SPEC, run=run)
    with pytest.raises(ValueError, match="16 hex digits"):
        JobSpec.from_json(SPEC.to_json().replace(SPEC.run, run))


def test_a_job_of_an_older_protocol_is_refused_by_its_number_whatever_its_keys() -> None:
    old = SPEC.to_json().replace(f'"protocol":{PROTOCOL}', '"protocol":2')
    for new, before in (("placement", "strategy"), ("sub_buffers", "buffer_parts")):
        assert f'"{new}":' in old
        old = old.replace(f'"{new}":', f'"{before}":')
    with pytest.raises(ValueError, match=f"job of protocol 2; this version speaks {PROTOCOL}"):
        JobSpec.from_json(old)
    with pytest.raises(ValueError, match=r"got one with \['strategy'\]"):
        JobSpec.from_json(SPEC.to_json().replace('"placement":', '"strategy":'))

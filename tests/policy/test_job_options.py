"""A job's options: in its document whole or not at all, and each in its range."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import (
    DeviceOptions,
    JobOptions,
    MemoryOptions,
    PersistenceOptions,
    RecoveryOptions,
    TrafficOptions,
)
from castor_policy.membership import LIMITS, WatchLimits
from castor_policy.option import OptionError, Unit, default_of, options_of

SPEC = JobSpec("job", 2, 1, "group", ((0, 1), (1, 0)), "train.py", run="0123456789abcdef")
GROUPS = [type(group) for group in JobOptions().groups().values()]


def changed(group: str, **changes: object) -> str:
    """Return the job's document with other options in a group; None takes one away."""
    document = json.loads(SPEC.to_json())
    table = document[group] | changes
    document[group] = {key: value for key, value in table.items() if value is not None}
    return json.dumps(document)


@pytest.mark.parametrize(
    ("group", "changes", "part"),
    [
        ("traffic", {"mu": None}, "expected traffic of this version"),
        ("traffic", {"nu": 1}, "expected traffic of this version"),
        ("traffic", {"mu": "x"}, "traffic.mu: expected a number, not 'x'"),
        ("traffic", {"mu": 2}, "traffic.mu: expected a share above 0 and up to 1, not 2"),
        ("traffic", {"sub_buffers": True}, "traffic.sub_buffers: expected a whole number"),
        ("limits", {"hang_s": 0.1}, "limits.hang_s: expected 0.5 s or more, not 0.1 s: a loaded"),
        ("persistence", {"tiers": 3}, "persistence.tiers: expected a text or a list"),
    ],
)
def test_a_document_has_all_options_of_a_group_in_their_ranges(
    group: str, changes: dict[str, Any], part: str
) -> None:
    assert JobSpec.from_json(changed(group)) == SPEC
    with pytest.raises(ValueError, match=part):
        JobSpec.from_json(changed(group, **changes))


@pytest.mark.parametrize("group", GROUPS)
def test_the_defaults_are_in_range_and_named_after_their_units(group: Any) -> None:
    made = group()
    for name, one in options_of(group).items():
        assert getattr(made, name) == default_of(group, name)
        assert name.endswith(one.unit.suffix)
        assert one.help.endswith(".")
        if one.unit in (Unit.SECONDS, Unit.SHARE, Unit.RATIO):
            with pytest.raises(OptionError, match=f"^{name}: expected "):
                replace(made, **{name: math.nan})


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (lambda: TrafficOptions(chunk_bytes=5000), "chunk_bytes: expected a multiple of 4096"),
        (lambda: TrafficOptions(buffer_bytes=3), "buffer_bytes: each of its 4 sub-buffers"),
        (lambda: TrafficOptions(checkpoint_every=0), "checkpoint_every: expected 1 or more"),
        (lambda: WatchLimits(lease_s=0.9), "lease_s: expected 1 to 600 s, not 0.9 s: etcd"),
        (lambda: WatchLimits(lease_s=601), "lease_s: expected 1 to 600 s"),
        (lambda: MemoryOptions(limit_bytes=-1), "limit_bytes: expected 1 B or more"),
        (lambda: PersistenceOptions(every_s=0), "every_s: expected above 0 s, not 0 s"),
        (lambda: RecoveryOptions(max_attempts=0), "max_attempts: expected 1 or more"),
        (lambda: DeviceOptions(paced_copy_bps=-8), "paced_copy_bps: expected 1 bit/s or more"),
        (
            lambda: JobOptions(
                traffic=TrafficOptions(scheme="none"), persistence=PersistenceOptions(tiers=("p",))
            ),
            "persistence.tiers: scheme none takes no checkpoint",
        ),
    ],
)
def test_a_group_is_checked_where_it_is_made(made: Any, part: str) -> None:
    with pytest.raises(OptionError, match=part):
        made()


def test_none_is_in_the_range_of_what_may_be_left_out() -> None:
    assert MemoryOptions(limit_bytes=0) == MemoryOptions()
    assert TrafficOptions(buffer_bytes=0).buffer_bytes == 0
    assert WatchLimits() == LIMITS

"""Faults: what a person writes is read back the same, and becomes due at its moment."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_configs.errors import InputError
from castor_lab.faults.fault import (
    FOR_GOOD,
    AtIteration,
    AtRecovery,
    AtTime,
    Fault,
    FaultKind,
    Now,
    parse_fault,
)
from castor_lab.faults.schedule import FaultSchedule, faults_of_trace
from castor_records.events.event import Event
from castor_records.events.failures import Detected
from castor_records.events.training import IterationEnded
from castor_traces.trace import Failure, make_trace

MACHINES, RANKS = 4, 2
whens = st.one_of(
    st.builds(AtIteration, st.integers(1, 10**6)),
    st.builds(AtRecovery, st.integers(0, 50).map(lambda n: n / 4)),
    st.builds(AtTime, st.integers(1, 500).map(lambda n: n / 4)),
    st.just(Now()),
)


STORAGE = (FaultKind.STORAGEHANG, FaultKind.STORAGEFULL)
LASTING = (FaultKind.STORE, FaultKind.LINK, FaultKind.WIPE, *STORAGE)
WITHOUT_TARGET = (FaultKind.ROOT, FaultKind.STORE, FaultKind.WIPE, FaultKind.STRANGER, *STORAGE)


@st.composite
def valid_faults(draw: st.DrawFn) -> Fault:
    kind = draw(st.sampled_from(list(FaultKind)))
    count = MACHINES * RANKS if kind in (FaultKind.RANK, FaultKind.STOP) else MACHINES
    targets: tuple[int | str, ...] = ()
    if kind not in WITHOUT_TARGET:
        targets = tuple(draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True)))
    outage_s = 10.0
    if kind in LASTING:
        outage_s = draw(st.sampled_from([0.5, 10.0, 90.0, FOR_GOOD][: 3 + (kind == "link")]))
    bandwidth_bps = draw(st.integers(1, 10**11)) if kind == FaultKind.SLOW else 0
    return Fault(kind, targets, draw(whens), outage_s, bandwidth_bps=bandwidth_bps)


def parsed(text: str) -> Fault:
    return parse_fault(text, machines=MACHINES, ranks_per_machine=RANKS)


@given(valid_faults())
def test_a_fault_is_read_back_as_it_is_shown(fault: Fault) -> None:
    assert parsed(str(fault)) == fault


def test_the_documented_faults_are_read() -> None:
    assert parsed("machine:1,2@10") == Fault(FaultKind.MACHINE, (1, 2), AtIteration(10))
    assert parsed("machine:spare-0@40s") == Fault(FaultKind.MACHINE, ("spare-0",), AtTime(40.0))
    assert parsed("store@12/10s").outage_s == 10.0
    assert parsed("machine:3@recovery+0.5s").when == AtRecovery(0.5)
    assert parsed("rank:7@20").targets == (7,)
    assert parsed("link:2@10").outage_s == FOR_GOOD
    assert parsed("link:2,3@10/5s") == Fault(FaultKind.LINK, (2, 3), AtIteration(10), 5.0)
    assert parsed("slow:1@10/10mbit").bandwidth_bps == 10_000_000
    assert parsed("slow:spare-0@now/1.5Gbit/s").bandwidth_bps == 1_500_000_000
    assert parsed("wipe@12/1s") == Fault(FaultKind.WIPE, (), AtIteration(12), 1.0)
    assert parsed("twin:1@20").targets == (1,)
    around = ("store@1", "wipe@1", "storagehang@1", "storagefull@1", "twin:0@1", "stranger@1")
    assert all(parsed(text).is_around for text in around)
    assert not any(parsed(text).is_around for text in ("forkstop:0@1", "rank:0@1", "link:0@1"))
    assert [parsed(text).of_link for text in ("link:0@1", "slow:0@1/1mbit", "stop:0@1")] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "expected KIND"),
        ("machine:2", "say when"),
        ("machin:2@10", "did you mean machine"),
        ("machine@10", "needs a machine"),
        ("machine:@10", "needs a machine"),
        ("machine:4@10", "use 0..3"),
        ("rank:8@10", "use 0..7"),
        ("rank:node-1@10", "not a rank"),
        ("machine:1,1@10", "twice"),
        ("machine:-1@10", "not a machine"),
        ("root:1@10", "takes no target"),
        ("rank:1@0", "count from 1"),
        ("rank:1@soon", "WHEN is"),
        ("rank:1@recovery+", "WHEN is"),
        ("rank:1@recovery+x", "a time such as"),
        (
            "rank:1@10/5s",
            "only store, link, wipe, storagehang, storagefull and slow take an option",
        ),
        ("slow:1@10", "say how slow"),
        ("slow:1@10/5s", "a bandwidth such as"),
        ("slow:4@10/1mbit", "use 0..3"),
        ("link:1@10/10mbit", "a time such as"),
        ("link@10", "needs a machine"),
        ("store@10/fast", "a time such as"),
    ],
)
def test_what_is_no_fault_is_refused_in_one_line(text: str, part: str) -> None:
    with pytest.raises(InputError) as refused:
        parsed(text)
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def ended(iteration: int) -> Event:
    return IterationEnded(generation=1, rank=0, iteration=iteration)


def test_faults_become_due_once_and_in_their_order() -> None:
    early, late = parsed("rank:1@3"), parsed("rank:2@5")
    recovery, timed = parsed("machine:3@recovery+0.5s"), parsed("rank:0@2s")
    schedule = FaultSchedule([late, early, recovery, timed])
    schedule.saw(ended(1), 10.0)
    assert schedule.due(11.9) == []
    assert schedule.due(12.0) == [timed]
    schedule.saw(ended(5), 13.0)
    assert schedule.due(13.0) == [late, early]
    # Iterations that are done again do not bring a fault back.
    schedule.saw(ended(3), 14.0)
    assert schedule.due(14.0) == []
    # Nor do they keep away one that is asked for later and whose iteration has been.
    schedule.add(early)
    schedule.add(late)
    assert schedule.due(14.0) == [early, late]
    schedule.saw(Detected(generation=2), 20.0)
    schedule.saw(Detected(generation=3), 30.0)
    assert schedule.due(20.4) == []
    assert schedule.due(20.5) == [recovery]
    assert schedule.waiting == ()
    now = replace(early, when=Now())
    schedule.add(now)
    assert schedule.due(0.0) == [now]


def test_a_trace_becomes_faults_with_its_time_compressed() -> None:
    failures = [
        Failure(0, 0, "software"),
        Failure(60 * 10**9, 5, "hardware", cause="DIMM"),
        Failure(120 * 10**9, None, "hardware"),
    ]
    faults = faults_of_trace(make_trace("t", 6, 10**12, failures), 60.0, MACHINES, RANKS)
    assert [fault.kind for fault in faults] == ["rank", "machine", "machine"]
    assert [fault.when for fault in faults] == [AtTime(0.0), AtTime(1.0), AtTime(2.0)]
    assert [fault.targets for fault in faults] == [(0,), (1,), (2,)]
    assert faults[1].cause == "DIMM"
    with pytest.raises(ValueError, match="above 0"):
        faults_of_trace(make_trace("t", 6, 10**12, failures), 0.0, MACHINES, RANKS)

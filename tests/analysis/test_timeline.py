"""The timeline read from an event log against the tally of the very run that wrote it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_analysis.pictures.chrome_trace import to_chrome_trace
from castor_analysis.timeline import LOST_PROGRESS, TRAINING, Timeline, read_timeline
from castor_policy.placement import place
from castor_records.events.event import Entry, Event
from castor_records.events.failures import (
    Detected,
    Failed,
    Planned,
    Replaced,
    Resumed,
    Retrieved,
    RunEnded,
    RunStarted,
    Serialised,
)
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations, Tally

MACHINES, HORIZON_NS = 4, 2000
small = st.integers(0, 20)


@st.composite
def logs(
    draw: st.DrawFn, *, stalls: bool = True
) -> tuple[list[Entry[Event]], Tally, StrategyCosts]:
    iteration = draw(st.integers(5, 40))
    memory_every, storage_every = draw(st.sampled_from([(1, 4), (2, 0), (0, 3), (0, 0)]))
    profile = StrategyCosts(
        iteration_ns=iteration,
        memory_every=memory_every,
        memory_transfer_ns=draw(st.integers(0, memory_every * iteration)),
        storage_every=storage_every,
        storage_stall_ns=draw(small) if stalls else 0,
        storage_transfer_ns=draw(st.integers(0, storage_every * iteration)),
        serialise_ns=draw(small),
        retrieve_own_ns=draw(small),
        retrieve_peer_ns=draw(small),
        retrieve_storage_ns=draw(small),
        replicate_ns=draw(small),
        warm_up_ns=draw(small),
    )
    failure = st.tuples(
        st.integers(0, HORIZON_NS), st.integers(0, MACHINES - 1), st.integers(0, 1), small
    )
    rows = sorted(draw(st.lists(failure, max_size=12)))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    strikes = Strikes(
        columns[0], columns[1].astype(np.int32), columns[2].astype(np.int8), columns[3]
    )
    events: list[Entry[Event]] = []
    engine = SimpyEngine(
        profile,
        Operations(MACHINES, heartbeat_ns=3, poll_ns=5, misses=draw(st.sampled_from([0, 3]))),
        place("group", MACHINES, 2).replicas,
        [strikes],
        horizon_ns=HORIZON_NS,
        observe=events.append,
    )
    return events, engine.run(), profile


def spent(timeline: Timeline, *phases: str) -> int:
    return sum(s.end_ns - s.start_ns for s in timeline.spans if s.phase in phases)


@settings(max_examples=2 * settings.default.max_examples)
@given(logs())
def test_phases_sum_to_the_tally(log) -> None:
    events, tally, _profile = log
    timeline = read_timeline(events)
    assert timeline.end_ns == tally.wall_ns == HORIZON_NS
    edges = [(span.start_ns, span.end_ns) for span in timeline.spans]
    assert edges[0][0] == 0
    assert edges[-1][1] == HORIZON_NS
    assert all(left[1] == right[0] for left, right in pairwise(edges))
    for phase in ("detection", "serialisation", "replacement_wait", "retrieval", "warm_up"):
        assert spent(timeline, phase) == getattr(tally, f"{phase}_ns")
    trained_ns = tally.useful_ns + tally.lost_progress_ns + tally.checkpoint_stall_ns
    assert spent(timeline, TRAINING, LOST_PROGRESS) == trained_ns


@settings(max_examples=2 * settings.default.max_examples)
@given(logs(stalls=False))
def test_lost_progress_and_iterations_are_those_of_the_run(log) -> None:
    events, tally, profile = log
    timeline = read_timeline(events)
    assert len(timeline.failures) == tally.software_failures + tally.hardware_failures
    ended = [r for r in timeline.outages if r.tier is not None]
    assert len(ended) == tally.recoveries
    if len(ended) == len(timeline.outages):  # else the log ends before it says what was lost
        assert spent(timeline, LOST_PROGRESS) == tally.lost_progress_ns
        assert spent(timeline, TRAINING) == tally.useful_ns
    time_ns, iterations = zip(*timeline.iterations, strict=True)
    assert list(time_ns) == sorted(time_ns)
    assert iterations[-1] == tally.iterations
    assert min(iterations) >= 0
    # A failure throws the line back to the iteration that is restored.
    for recovery in ended:
        assert (recovery.end_ns, recovery.iteration) in timeline.iterations
    if timeline.iteration_ns is not None:
        # Of the iteration that the end cuts off, only the time is counted.
        assert profile.iteration_ns <= timeline.iteration_ns
        last_ns = HORIZON_NS if tally.iterations == 0 else 2 * profile.iteration_ns
        assert tally.recoveries or timeline.iteration_ns <= last_ns


def at(time_ns: int, kind: type[Event], **fields: Any) -> Entry[Event]:
    return Entry(time_ns, kind.of_fields(fields))


STORY = [
    at(0, RunStarted, positions=4),
    at(250, Failed, machine=2, position=2, failure="hardware"),
    at(260, Detected),
    at(260, Planned, iteration=2, tier="peer", lost=1),
    at(270, Serialised),
    at(275, Failed, machine=3, position=3, failure="software"),
    at(285, Detected),
    at(285, Planned, iteration=1, tier="storage", lost=2),
    at(300, Replaced),
    at(320, Retrieved, iteration=1),
    at(330, Resumed, iteration=1, tier="storage", lost_progress_ns=150),
    at(630, RunEnded, iteration=4),
]


def test_a_story_told_by_hand() -> None:
    timeline = read_timeline(STORY)
    assert [(s.phase, s.start_ns, s.end_ns) for s in timeline.spans] == [
        ("training", 0, 100),
        ("lost_progress", 100, 250),
        ("detection", 250, 260),
        ("serialisation", 260, 270),
        ("replacement_wait", 270, 275),
        ("detection", 275, 285),
        ("replacement_wait", 285, 300),
        ("retrieval", 300, 320),
        ("warm_up", 320, 330),
        ("training", 330, 630),
    ]
    (recovery,) = timeline.outages
    assert (recovery.start_ns, recovery.end_ns, recovery.tier) == (250, 330, "storage")
    assert [f.event.failure for f in recovery.failures] == ["hardware", "software"]
    # (250 - 150) + 300 of training kept for 4 iterations.
    assert timeline.iteration_ns == 100
    assert timeline.iterations == (
        (0, 0.0), (250, 2.5), (250, 1.0), (330, 1.0), (630, 4.0),
    )  # fmt: skip


def test_progress_lost_over_several_segments_is_taken_from_each() -> None:
    # Lost at 300: 250 of training, 100 of them since 200 and 150 before the first failure at 190.
    events = [
        at(0, RunStarted),
        at(190, Failed, failure="software"),
        at(200, Resumed, iteration=1, tier="own_memory", lost_progress_ns=0),
        at(300, Failed, failure="hardware"),
        at(310, Resumed, iteration=0, tier="storage", lost_progress_ns=250),
        at(400, RunEnded, iteration=1),
    ]
    spans = [(s.phase, s.start_ns, s.end_ns) for s in read_timeline(events).spans]
    assert spans[:2] == [("training", 0, 40), ("lost_progress", 40, 190)]
    assert ("lost_progress", 200, 300) in spans


@pytest.mark.parametrize("upto", [0, 1, 3, 6, 10])
def test_a_log_that_breaks_off_is_read_as_far_as_it_goes(upto: int) -> None:
    timeline = read_timeline(STORY[:upto])
    assert timeline.end_ns == (STORY[upto - 1].time_ns if upto else 0)


@settings(max_examples=50)
@given(logs())
def test_the_chrome_trace_holds_every_phase_and_failure(log) -> None:
    events, tally, _profile = log
    trace = to_chrome_trace({"gemini": events, "again": iter(events)})
    assert json.loads(json.dumps(trace)) == trace
    records = trace["traceEvents"]
    for process in (1, 2):
        mine = [record for record in records if record["pid"] == process]
        phases = [record for record in mine if record["ph"] == "X"]
        # Each end is rounded down by itself: phases meet, and a shorter one has no microsecond.
        assert sum(record["dur"] for record in phases) == HORIZON_NS // 1000
        assert all(record["dur"] >= 0 for record in phases)
        failures = [record for record in mine if record["ph"] == "i"]
        assert len(failures) == tally.software_failures + tally.hardware_failures
        counted = [record["args"]["iterations"] for record in mine if record["ph"] == "C"]
        assert counted[-1] == tally.iterations
    names = [r["args"]["name"] for r in records if r["name"] == "process_name"]
    assert names == ["gemini", "again"]


def test_a_trace_says_what_perfetto_needs() -> None:
    slower = [replace(event, time_ns=event.time_ns * 1000) for event in STORY]
    records = to_chrome_trace({"gemini": slower})["traceEvents"]
    assert {record["ph"] for record in records} == {"M", "X", "i", "C"}
    first = next(record for record in records if record["ph"] == "i")
    assert first["s"] == "t"
    assert first["ts"] == 250
    assert first["args"] == {"machine": 2}
    retrieval = next(record for record in records if record["name"] == "retrieval")
    assert retrieval["args"] == {"recovered_from": "storage", "iteration": 1}
    assert (retrieval["ts"], retrieval["dur"]) == (300, 20)

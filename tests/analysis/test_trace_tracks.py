"""Perfetto files: whole microseconds, and slices of one thread nest, whatever was measured."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_analysis.pictures.chrome_trace import to_chrome_trace
from castor_analysis.pictures.iteration_trace import iteration_chrome_trace
from castor_analysis.pictures.run_trace import run_to_chrome_trace
from castor_analysis.pictures.tracks import chrome_trace, complete
from castor_records.event_log import merge
from castor_records.events.event import Entry, Event
from castor_sim.iteration.case import load_iteration
from castor_sim.iteration.run import simulate_iteration
from castor_sim.run import Engine, run_once
from castor_sim.setup import load_setup

LOGS = sorted((Path(__file__).parents[2] / "docs" / "images").glob("*.events.jsonl"))


def check(trace: dict[str, Any]) -> int:
    """Check every slice against every other of its thread; return how many there are."""
    threads = defaultdict(list)
    named = set()
    for event in trace["traceEvents"]:
        if event["ph"] != "M":
            assert type(event["ts"]) is int
        if event["ph"] == "X":
            assert type(event["dur"]) is int
            assert event["dur"] >= 0
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "M" and event["name"] == "thread_name":
            named.add((event["pid"], event["tid"]))
    for thread, slices in threads.items():
        assert thread in named, f"thread {thread} has no name"
        inside: list[int] = []
        for start, end in sorted(slices, key=lambda one: (one[0], -one[1])):
            while inside and inside[-1] <= start:
                inside.pop()
            assert not inside or end <= inside[-1], f"{start}..{end} overlaps on thread {thread}"
            inside.append(end)
    return sum(map(len, threads.values()))


NAMED = {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "track"}}


@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 9000)), max_size=30))
def test_any_slices_nest_in_the_end_and_none_is_lost(spans: list[tuple[int, int]]) -> None:
    records = [NAMED] + [
        complete(1, 1, str(number), start, start + long, {})
        for number, (start, long) in enumerate(spans)
    ]
    trace = chrome_trace(records)
    assert check(trace) == len(spans)
    drawn = sorted(event["name"] for event in trace["traceEvents"] if event["ph"] == "X")
    assert drawn == sorted(str(number) for number in range(len(spans)))


def test_what_meets_at_a_nanosecond_meets_at_a_microsecond() -> None:
    """As floats 0.1 + 0.2 ends after 0.3 begins; and 1,999 ns to 2,001 ns is a microsecond."""
    ends = [0, 100, 300, 1999, 2001, 3_333_333, 10**15 + 1, 10**15 + 999_999]
    records = [NAMED] + [complete(1, 1, "x", start, end, {}) for start, end in pairwise(ends)]
    trace = chrome_trace(records)
    assert check(trace) == len(ends) - 1
    assert {event["tid"] for event in trace["traceEvents"]} == {1}, "nothing had to move"


def test_a_recovery_within_another_gets_a_thread_beside_it() -> None:
    records = [
        NAMED,
        complete(1, 1, "first", 0, 5_000_000, {}),
        complete(1, 1, "second", 4_000_000, 9_000_000, {}),
        complete(1, 1, "third", 9_000_000, 9_500_000, {}),
    ]
    trace = chrome_trace(records)
    check(trace)
    by_name = {event["name"]: event["tid"] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert by_name["first"] == by_name["third"] == 1
    assert by_name["second"] != 1
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert names == ["track", "track (2)"]


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.name.partition(".")[0])
def test_a_real_run_nests(log: Path) -> None:
    assert check(run_to_chrome_trace(merge([log]))) > 100


def test_a_simulated_run_nests() -> None:
    changes = ('duration="90d"', "seeds=1", "failures.per_day=12.0")
    setup = load_setup("gpt2-100b-p4d", changes)
    logs: dict[str, list[Entry[Event]]] = {name: [] for name in setup.costs}
    for name, events in logs.items():
        run_once(setup, name, 1, Engine.SIMPY, events.append)
    assert check(to_chrome_trace(logs)) > 1000


def test_a_simulated_iteration_nests() -> None:
    assert (
        check(iteration_chrome_trace(simulate_iteration(load_iteration("gpt2-40b-p3dn").case)))
        > 100
    )

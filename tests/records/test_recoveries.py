"""Recoveries from event logs written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from castor_records.events.event import Entry, Event
from castor_records.events.failures import (
    Detected,
    Failed,
    Planned,
    Replaced,
    Resumed,
    Retrieved,
    TrainerStarted,
)
from castor_records.events.training import IterationEnded
from castor_records.history import History
from castor_records.phases import MEASURED
from castor_records.recoveries import (
    Recovery,
    last_iteration,
    recoveries,
)


def at(time_s: float, kind: type[Event], **fields: Any) -> Entry[Event]:
    return Entry(round(time_s * 1e9), kind.of_fields(fields))


def trained(
    start_s: float, generation: int, first: int, last: int, ranks: int = 2
) -> list[Entry[Event]]:
    """Iterations of one second each, rank 1 a little after rank 0."""
    return [
        at(
            start_s + i + rank / 100,
            IterationEnded,
            rank=rank,
            generation=generation,
            iteration=n,
        )
        for i, n in enumerate(range(first, last + 1))
        for rank in range(ranks)
    ]


def recovered(start_s: float, generation: int, iteration: int, source: str) -> list[Entry[Event]]:
    """From the plan on: retrieval takes 1 s, the restart 0.5 s; rank 1 is the slower."""
    own = {"generation": generation, "iteration": iteration}
    return [
        at(start_s, Planned, generation=generation, iteration=iteration, tier=source),
        at(start_s + 0.2, Retrieved, **own, rank=0, source="own_memory"),
        at(start_s + 1.0, Retrieved, **own, rank=1, source=source),
        at(start_s + 1.2, Resumed, generation=generation, rank=0, iteration=iteration),
        at(start_s + 1.5, Resumed, generation=generation, rank=1, iteration=iteration),
    ]


def only(events: list[Entry[Event]]) -> Recovery:
    (found,) = recoveries(events)
    return found


def check_sum(found: Recovery) -> None:
    parts = [found.seconds[part] for part in MEASURED]
    assert sum(part for part in parts if part is not None) == pytest.approx(found.seconds["total"])


def test_a_killed_trainer_is_restarted_from_own_memory() -> None:
    events = [
        *trained(1, 1, 1, 9),
        at(9.5, Failed, failure="software", target="rank:1", machine=1, rank=1),
        at(9.6, Detected, generation=2, failure="software", machine=1, cause="killed"),
        *recovered(9.7, 2, 8, "own_memory"),
        *trained(12.2, 2, 9, 12),
    ]
    found = only(events)
    assert (found.kind, found.generation, found.iteration) == ("software", 2, 8)
    assert (found.machines, found.cause, found.iterations_lost) == ((1,), "killed", 1)
    assert found.sources == {0: "own_memory", 1: "own_memory"}
    expected = {
        "detection": 0.1,
        "interrupted": 0.0,
        "replacement": 0.0,
        "planning": 0.1,
        "retrieval": 1.0,
        "restart": 0.5,
        "first_iteration": 1.0,
        "total": 2.7,
    }
    assert found.seconds == pytest.approx(expected)
    check_sum(found)
    assert recoveries(list(reversed(events))) == [found]


def test_a_lost_machine_counts_from_its_lease_and_its_replacement_apart() -> None:
    events = [
        *trained(1, 1, 1, 9),
        at(9.5, Failed, failure="hardware", target="machine:1", machine=1, rank=None),
        at(9.6, Detected, generation=2, failure="software", machine=0, cause="peer gone"),
        at(14.5, Detected, generation=2, failure="hardware", machine=1, cause="lease expired"),
        at(15.5, Replaced, generation=2, machine=1, agent="spare-0"),
        *recovered(15.7, 2, 9, "peer:node-0"),
        *trained(18.2, 2, 10, 12),
        # Redundancy is no part of the recovery, whether it comes back later or before own parts.
        at(15.8, Retrieved, generation=2, rank=0, iteration=9, source="peer:node-0", own=False),
        at(19.0, Retrieved, generation=2, rank=0, iteration=9, source="peer:node-0", own=False),
    ]
    found = only(events)
    assert (found.kind, found.machines, found.iterations_lost) == ("hardware", (1,), 0)
    assert found.cause == "peer gone; lease expired"
    assert found.sources == {0: "own_memory", 1: "peer:node-0"}
    assert found.seconds["detection"] == pytest.approx(5.0)
    assert found.seconds["replacement"] == pytest.approx(1.0)
    assert found.seconds["planning"] == pytest.approx(0.2)
    assert found.seconds["retrieval"] == pytest.approx(1.0)
    check_sum(found)


def test_the_last_plan_says_when_it_was_decided_what_to_load() -> None:
    events = [
        *trained(1, 1, 1, 9),
        at(9.6, Detected, generation=2, failure="software", machine=1, cause="killed"),
        at(9.7, Planned, generation=2, iteration=9, tier="peer"),
        *recovered(11.0, 2, 8, "storage"),
        *trained(14.0, 2, 9, 10),
    ]
    assert only(events).seconds["planning"] == pytest.approx(1.4)


def test_a_failure_during_a_recovery_makes_one_outage_of_both() -> None:
    events = [
        *trained(1, 1, 1, 9),
        at(9.5, Failed, failure="software", target="rank:1", machine=1, rank=1),
        at(9.6, Detected, generation=2, failure="software", machine=1, cause="killed"),
        *recovered(9.7, 2, 9, "own_memory"),
        at(11.3, Failed, failure="hardware", target="machine:0", machine=0, rank=None),
        at(11.6, Detected, generation=3, failure="hardware", machine=0, cause="lease expired"),
        at(11.8, Replaced, generation=3, machine=0, agent="spare-0"),
        *recovered(12.0, 3, 9, "peer:node-1"),
        *trained(14.0, 3, 10, 12),
    ]
    found = only(events)
    assert (found.generation, found.generations, found.machines) == (3, (2, 3), (0, 1))
    assert (found.kind, found.iterations_lost) == ("hardware", 0)
    assert found.seconds["detection"] == pytest.approx(0.1)
    assert found.seconds["interrupted"] == pytest.approx(2.0)
    assert found.seconds["total"] == pytest.approx(4.5)
    check_sum(found)


def test_each_outage_is_a_recovery_of_its_own() -> None:
    events = [
        *trained(1, 1, 1, 9),
        at(9.0, Failed, failure="software", target="store", machine=None, rank=None),
        at(9.1, Failed, failure="software", target="agent:spare-1", machine=None, rank=None),
        at(9.6, Detected, generation=2, failure="software", machine=1, cause="crash"),
        *recovered(9.7, 2, 9, "own_memory"),
        *trained(12.0, 2, 10, 20),
        at(23.0, Failed, failure="software", target="rank:0", machine=0, rank=0),
        at(23.5, Detected, generation=3, failure="software", machine=0, cause="killed"),
        at(23.6, Planned, generation=3, iteration=12, tier="storage"),
        at(25.0, Resumed, generation=3, rank=0, iteration=12),
        at(25.0, Resumed, generation=3, rank=1, iteration=12),
        *trained(26.0, 3, 13, 14),
        at(27.5, Detected, generation=4, failure="software", machine=0, cause="crash"),
        *recovered(27.6, 4, 14, "own_memory"),
        *trained(30.0, 4, 15, 15),
    ]
    first, second, third = recoveries(events)
    # Nothing was injected on a machine: nobody knows when it failed, and the iteration is lost.
    assert first.seconds["detection"] == pytest.approx(0.59)
    assert (first.since, second.since, third.since) == (
        "last_iteration",
        "failure",
        "last_iteration",
    )
    assert first.machines == (1,)
    assert second.seconds["detection"] == pytest.approx(0.5)
    assert (second.iteration, second.iterations_lost) == (12, 8)
    assert second.seconds["retrieval"] == 0.0
    assert second.seconds["restart"] == pytest.approx(1.4)
    assert second.sources == {}
    # Lost is what the training before it had, not what an earlier one once had.
    assert third.iterations_lost == 0
    history = History()
    begun = [history.add(entry) for entry in sorted(events, key=lambda entry: entry.time_ns)]
    assert sum(begun) == 4  # rank 0's first iteration of each generation
    assert recoveries(history.entries) == [first, second, third]
    assert len(history.entries) < len(events)


def test_a_recovery_that_never_ended_has_no_total() -> None:
    events = [
        *trained(1, 1, 1, 3),
        at(4.6, Detected, generation=2, failure="software", machine=1, cause="crash"),
        at(4.7, Detected, generation=3, failure="software", machine=1, cause="crash again"),
    ]
    found = only(events)
    assert (found.generations, found.iteration, found.iterations_lost) == ((2, 3), None, None)
    assert found.seconds["planning"] is None
    assert found.seconds["total"] is None
    assert recoveries([]) == []
    assert last_iteration(events) == 3
    assert last_iteration([]) == 0


def test_a_hang_that_nobody_injected_counts_from_the_last_iteration() -> None:
    """A hang of 61 s was reported as an outage of 1 s, with a detection of 0."""
    events = [
        *trained(1, 1, 1, 9),
        at(70.0, Detected, generation=2, failure="software", machine=1, cause="stalled"),
        *recovered(70.1, 2, 9, "own_memory"),
        *trained(72.0, 2, 10, 12),
    ]
    found = only(events)
    assert found.since == "last_iteration"
    assert found.seconds["detection"] == pytest.approx(70.0 - 9.01)
    assert found.seconds["total"] == pytest.approx(72.0 - 9.01)
    check_sum(found)


def test_a_failure_that_strikes_a_job_that_stands_already_does_not_begin_the_outage() -> None:
    def struck(at_s: float) -> Recovery:
        return only(
            [
                *trained(1, 1, 1, 9),
                at(at_s, Failed, failure="software", target="rank:1", machine=1, rank=1),
                at(at_s + 1, Detected, generation=2, failure="software", machine=1, cause="x"),
            ]
        )

    assert (struck(12.0).since, struck(12.0).seconds["detection"]) == ("failure", 1.0)
    late = struck(60.0)
    assert late.since == "last_iteration"
    assert late.seconds["detection"] == pytest.approx(61.0 - 9.01)


def test_a_start_that_fails_counts_from_its_start() -> None:
    events = [
        at(2.0, TrainerStarted, generation=1, rank=0, pid=7),
        at(2.5, TrainerStarted, generation=1, rank=1, pid=8),
        at(33.0, Detected, generation=2, failure="software", machine=1, cause="stopped"),
    ]
    found = only(events)
    assert (found.since, found.seconds["detection"]) == ("start", 30.5)


def test_what_befell_a_link_counts_only_where_it_stopped_training() -> None:
    def cut(time_s: float, outage_s: float | None) -> Entry[Event]:
        lasting: dict[str, float] = {} if outage_s is None else {"outage_s": outage_s}
        return at(time_s, Failed, failure="software", target="link:1", machine=1, **lasting)

    after = [
        at(9.5, Detected, generation=2, failure="hardware", machine=1, cause="lease"),
        *recovered(9.7, 2, 8, "peer:2"),
        *trained(12.2, 2, 9, 12),
    ]
    slow = at(3.5, Failed, failure="software", target="slow:0", machine=0)
    whole_again = only([*trained(1, 1, 1, 5), cut(2.5, 1.0), slow, cut(6.5, 5.0), *after])
    assert whole_again.machines == (1,)
    assert whole_again.seconds["detection"] == pytest.approx(3.0)
    for_good = only([*trained(1, 1, 1, 5), cut(6.5, None), *after])
    assert for_good.seconds["detection"] == pytest.approx(3.0)
    check_sum(for_good)

"""A run as training and outages: the same form from simulated and from real logs."""

from __future__ import annotations

from itertools import pairwise

from castor_analysis.timeline import read_timeline
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
    TrainerStarted,
)
from castor_records.events.training import IterationEnded
from castor_records.outages import Course, course_of
from castor_records.phases import Phase, Span
from castor_sim.tally import Tally

S = 10**9


def test_a_simulated_outage_has_the_phases_that_its_events_open() -> None:
    struck = Failed(machine=2, position=2, failure="hardware")
    log: list[Entry[Event]] = [
        Entry(0, RunStarted(positions=4)),
        Entry(250, struck),
        Entry(260, Detected()),
        Entry(260, Planned(iteration=2, tier="peer", lost=1)),
        Entry(270, Serialised()),
        Entry(300, Replaced()),
        Entry(320, Retrieved(iteration=2)),
        Entry(330, Resumed(iteration=2, tier="peer", lost_progress_ns=50)),
        Entry(630, RunEnded(iteration=5)),
    ]
    course = course_of(log)
    assert (course.begun_ns, course.end_ns, course.end_iteration) == (0, 630, 5)
    (outage,) = course.outages
    assert outage.failures == (Entry(250, struck),)
    assert (outage.tier, outage.iteration, outage.lost_progress_ns) == ("peer", 2, 50)
    assert outage.spans == (
        Span(Phase.DETECTION, 250, 260),
        Span(Phase.SERIALISATION, 260, 270),
        Span(Phase.REPLACEMENT, 270, 300),
        Span(Phase.RETRIEVAL, 300, 320),
        Span(Phase.RESTART, 320, 330),
    )
    cut_off = course_of(log[:5]).outages[0]
    assert (cut_off.iteration, cut_off.end_ns, cut_off.spans[-1].phase) == (
        None,
        270,
        Phase.SERIALISATION,
    )


def real_log() -> list[Entry[Event]]:
    """Two ranks; rank 1 is killed 0.5 s into iteration 4, and iteration 2 is loaded by both."""
    own = {"generation": 2, "iteration": 2}
    return [
        Entry(0, RunStarted(machines=2, ranks=2, replicas=2, placement="group")),
        *(Entry(S + rank, Resumed(generation=1, rank=rank, iteration=0)) for rank in (0, 1)),
        *(
            Entry((1 + i) * S, IterationEnded(generation=1, rank=rank, iteration=i))
            for i in (1, 2, 3)
            for rank in (0, 1)
        ),
        Entry(round(4.5 * S), Failed(machine=1, failure="software", target="rank:1", rank=1)),
        Entry(5 * S, Detected(generation=2, failure="software", machine=1, cause="killed")),
        Entry(6 * S, Planned(generation=2, iteration=2, tier="storage")),
        Entry(7 * S, Retrieved(**own, rank=0, source="peer:node-1")),
        Entry(8 * S, Retrieved(**own, rank=1, source="storage")),
        *(Entry(9 * S, Resumed(**own, rank=rank)) for rank in (0, 1)),
        *(Entry(10 * S, IterationEnded(generation=2, rank=rank, iteration=3)) for rank in (0, 1)),
    ]


def test_a_real_outage_tells_what_was_loaded_and_when_what_failed() -> None:
    log = real_log()
    course = course_of(log)
    assert course.begun_ns == S + 1  # the slower rank
    assert (course.iteration, course.end_iteration, course.end_ns) == (0, 3, 10 * S)
    (outage,) = course.outages
    assert [(one.time_ns, one.event.target) for one in outage.failures] == [(4.5 * S, "rank:1")]
    assert (outage.tier, outage.iteration) == ("storage", 2)
    assert (outage.start_ns, outage.end_ns) == (4.5 * S, 9 * S)
    assert outage.lost_progress_ns == 1.5 * S  # iteration 3, and half of 4
    assert outage.spans == (
        Span(Phase.DETECTION, round(4.5 * S), 5 * S),
        Span(Phase.PLANNING, 5 * S, 6 * S),
        Span(Phase.RETRIEVAL, 6 * S, 8 * S),
        Span(Phase.RESTART, 8 * S, 9 * S),
    )


def test_a_real_outage_that_does_not_end_lasts_to_the_end_of_the_log() -> None:
    log = [entry for entry in real_log() if entry.time_ns <= 6 * S]
    log.append(Entry(7 * S, Retrieved(generation=2, rank=0, iteration=2, source="storage")))
    (outage,) = course_of([*log, Entry(12 * S, Replaced(generation=1, machine=0))]).outages
    assert (outage.tier, outage.iteration, outage.lost_progress_ns) == (None, None, 0)
    assert outage.spans[-2:] == (
        Span(Phase.RETRIEVAL, 6 * S, 7 * S),
        Span(Phase.RESTART, 7 * S, 12 * S),
    )


def test_what_was_trained_before_an_earlier_outage_is_not_lost_twice() -> None:
    log = [
        *real_log(),
        Entry(11 * S, Failed(machine=0, failure="software", target="rank:0", rank=0)),
        Entry(12 * S, Detected(generation=3, failure="software", machine=0, cause="killed")),
        Entry(12 * S, Planned(generation=3, iteration=1, tier="storage")),
        *(Entry(13 * S, Resumed(generation=3, iteration=1, rank=rank)) for rank in (0, 1)),
    ]
    second = course_of(log).outages[1]
    assert (second.start_ns, second.lost_progress_ns) == (11 * S, 2 * S)  # since 9 S


def test_an_outage_before_any_training_leaves_no_gap() -> None:
    log: list[Entry[Event]] = [
        *real_log()[:1],
        *(Entry(S, TrainerStarted(generation=1, rank=rank, pid=7)) for rank in (0, 1)),
        Entry(3 * S, Detected(generation=2, failure="software", machine=1, cause="crash")),
        Entry(3 * S, Planned(generation=2, iteration=0, tier="scratch")),
        *(Entry(5 * S, Resumed(generation=2, rank=rank, iteration=0)) for rank in (0, 1)),
        *(Entry(6 * S, IterationEnded(generation=2, rank=rank, iteration=1)) for rank in (0, 1)),
    ]
    timeline = read_timeline(log)
    edges = [(span.start_ns, span.end_ns) for span in timeline.spans]
    assert (edges[0][0], edges[-1]) == (0, (5 * S, 6 * S))
    assert all(left[1] == right[0] for left, right in pairwise(edges))
    assert [time_ns for time_ns, _ in timeline.iterations] == [S, S, S, 5 * S, 6 * S]


def test_a_log_without_training_has_no_outage() -> None:
    assert course_of([]) == Course(0, 0, (), 0, 0)
    started = real_log()[:1]
    assert course_of(started) == Course(None, 0, (), 0, 0)


def test_the_simulator_accounts_for_every_phase_by_its_name() -> None:
    parts = {phase.simulated for phase in Phase} - {"training"}
    assert all(f"{part}_ns" in Tally.__slots__ for part in parts)

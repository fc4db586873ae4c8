"""From an event log to what the job did when: phases, failures, outages and iterations.

Pictures and the Perfetto trace are drawn from this, for simulated and for real runs alike. Phases
have the simulator's names (`castor_records.phases`), as the tables beside the pictures have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest

from castor_records.events.event import Entry, Event
from castor_records.events.failures import Failed
from castor_records.outages import Course, Outage, course_of
from castor_records.phases import Phase, Span

TRAINING = Phase.FIRST_ITERATION.simulated
LOST_PROGRESS = "lost_progress"

PHASES = tuple(dict.fromkeys((TRAINING, LOST_PROGRESS, *(phase.simulated for phase in Phase))))
"""Every phase, in the order in which a failure brings them about."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A run from 0 to `end_ns`.

    Attributes:
        end_ns: its end.
        spans: the phases without a gap, in order; training that a failure undid is
            "lost_progress". Stalls for checkpoints are part of training: the log has none. The
            start of a real run counts as warm-up.
        failures: all that hit the job, in order.
        outages: in order; their spans are named as those of the timeline.
        iterations: (time, iteration) where the line of iterations over time bends: it climbs in
            training and falls back at a failure. Fractions stand for an iteration cut off.
        iteration_ns: training time of an iteration, checkpoint stalls included, estimated
            from the log; None if no iteration was kept.
    """

    end_ns: int
    spans: tuple[Span, ...]
    failures: tuple[Entry[Failed], ...]
    outages: tuple[Outage, ...]
    iterations: tuple[tuple[int, float], ...]
    iteration_ns: float | None


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Training from `start_ns` to `end_ns`, which began with `iteration`."""

    start_ns: int
    end_ns: int
    iteration: int


def read_timeline(entries: Iterable[Entry[Event]]) -> Timeline:
    """Follow an event log from start to end.

    Args:
        entries: of one run, simulated or real, in order of time.
    """
    course = course_of(entries)
    outages = tuple(_as_simulated(outage) for outage in course.outages)
    trained = _trained(course)
    iteration_ns = _iteration_ns(trained, course)
    return Timeline(
        course.end_ns,
        tuple(_with_lost_progress(_spans(trained, course, outages), outages)),
        tuple(failure for outage in outages for failure in outage.failures),
        outages,
        tuple(_iterations(trained, course, iteration_ns)),
        iteration_ns,
    )


def _as_simulated(outage: Outage) -> Outage:
    """Return the outage with the simulator's names; phases that it knows as one become one."""
    spans = []
    for name, alike in groupby(outage.spans, key=lambda span: Phase(span.phase).simulated):
        same = list(alike)
        spans.append(Span(name, same[0].start_ns, same[-1].end_ns))
    return replace(outage, spans=tuple(spans))


def _trained(course: Course) -> list[_Stretch]:
    """Return the training before each outage, be it none, and after the last one if it ended."""
    if course.begun_ns is None:
        return []
    found: list[_Stretch] = []
    since_ns, iteration = course.begun_ns, course.iteration
    for outage in course.outages:
        found.append(_Stretch(min(since_ns, outage.start_ns), outage.start_ns, iteration))
        if outage.iteration is None:
            return found
        since_ns, iteration = outage.end_ns, outage.iteration
    return [*found, _Stretch(since_ns, course.end_ns, iteration)]


def _spans(trained: Sequence[_Stretch], course: Course, outages: Sequence[Outage]) -> list[Span]:
    begun_ns = trained[0].start_ns if trained else course.end_ns
    spans = [Span(Phase.RESTART.simulated, 0, begun_ns)] if begun_ns > 0 else []
    for stretch, outage in zip_longest(trained, outages):
        if stretch.end_ns > stretch.start_ns:
            spans.append(Span(TRAINING, stretch.start_ns, stretch.end_ns))
        spans += () if outage is None else outage.spans
    return spans


def _with_lost_progress(spans: Sequence[Span], outages: Sequence[Outage]) -> list[Span]:
    """Rename the training before each outage that it undid, over several segments if need be."""
    result: list[Span] = []
    following = iter(outages)
    outage = next(following, None)
    for span in spans:
        while outage is not None and outage.start_ns <= span.start_ns:
            _undo(result, outage.lost_progress_ns)
            outage = next(following, None)
        result.append(span)
    while outage is not None:
        _undo(result, outage.lost_progress_ns)
        outage = next(following, None)
    return result


def _undo(spans: list[Span], lost_ns: int) -> None:
    index = len(spans)
    while lost_ns > 0 and index > 0:
        index -= 1
        span = spans[index]
        if span.phase != TRAINING:
            continue
        cut_ns = max(span.start_ns, span.end_ns - lost_ns)
        lost_ns -= span.end_ns - cut_ns
        parts = [Span(LOST_PROGRESS, cut_ns, span.end_ns)]
        if cut_ns > span.start_ns:
            parts.insert(0, Span(TRAINING, span.start_ns, cut_ns))
        spans[index : index + 1] = parts


def _iteration_ns(trained: Sequence[_Stretch], course: Course) -> float | None:
    """Estimate from time trained and iterations gained, over all segments together."""
    gained, spent_ns = 0, 0
    for stretch, outage in zip_longest(trained, course.outages):
        if outage is None:
            reached, lost_ns = course.end_iteration, 0
        elif outage.iteration is not None:
            reached, lost_ns = outage.iteration, outage.lost_progress_ns
        else:
            continue  # the log ends before it says what was lost
        gained += reached - stretch.iteration
        spent_ns += stretch.end_ns - stretch.start_ns - lost_ns
    return spent_ns / gained if gained > 0 and spent_ns > 0 else None


def _iterations(
    trained: Sequence[_Stretch], course: Course, iteration_ns: float | None
) -> list[tuple[int, float]]:
    points: list[tuple[int, float]] = []
    for stretch, outage in zip_longest(trained, course.outages):
        points.append((stretch.start_ns, float(stretch.iteration)))
        if outage is None:
            points.append((stretch.end_ns, float(course.end_iteration)))
            continue
        reached = float(stretch.iteration)
        if iteration_ns and outage.iteration is not None:
            # Better than counting from the start: the stalls of the segment drop out.
            reached = outage.iteration + outage.lost_progress_ns / iteration_ns
        elif iteration_ns:
            reached += (stretch.end_ns - stretch.start_ns) / iteration_ns
        points.append((stretch.end_ns, reached))
        kept = course.end_iteration if outage.iteration is None else outage.iteration
        points.append((stretch.end_ns, float(kept)))
    if len(trained) == len(course.outages):
        points.append((course.end_ns, float(course.end_iteration)))
    return points

"""From an event log to what the job did when: phases, failures, recoveries and iterations.

Pictures and the Perfetto trace are drawn from this, for simulated and for real runs alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from castor_analysis.job_events import events_of_the_job
from castor_policy.events import Event, EventKind

TRAINING = "training"
LOST_PROGRESS = "lost_progress"
RESTART = "restart"
"""From the machines' presence to training, where the log does not say when states were loaded."""

PHASES = (
    TRAINING,
    LOST_PROGRESS,
    "detection",
    "serialisation",
    "replacement_wait",
    "retrieval",
    "warm_up",
    RESTART,
)
"""Every phase, in the order in which a failure brings them about."""

_ENTERED_BY = {
    EventKind.RUN_STARTED: TRAINING,
    EventKind.FAILURE: "detection",
    EventKind.SERIALISED: "replacement_wait",
    EventKind.REPLACED: "retrieval",
    EventKind.RETRIEVED: "warm_up",
    EventKind.RESUMED: TRAINING,
}
_IN_MEMORY = ("own_memory", "peer")


@dataclass(frozen=True, slots=True)
class Span:
    """The job was in `phase` from `start_ns` to `end_ns`."""

    phase: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that hit the job; `kind` is "hardware", "software" or what the log says."""

    time_ns: int
    kind: str
    machine: int | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """From the failure that stopped training until training goes on.

    Attributes:
        start_ns: the first failure.
        end_ns: when training resumed, or the run ended.
        failures: the first one and those that struck before the end.
        spans: its phases.
        tier: what was loaded ("own_memory", "peer", "storage", "scratch"); None: the run ended.
        iteration: where training went on; None: the run ended.
        lost_progress_ns: training time that has to be done again.
    """

    start_ns: int
    end_ns: int
    failures: tuple[Failure, ...]
    spans: tuple[Span, ...]
    tier: str | None
    iteration: int | None
    lost_progress_ns: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """A run from 0 to `end_ns`.

    Attributes:
        end_ns: its end.
        spans: the phases without a gap, in order; training that a failure undid is
            "lost_progress". Stalls for checkpoints are part of training: the log has none.
        failures: all that hit the job, in order.
        recoveries: in order.
        iterations: (time, iteration) where the line of iterations over time bends: it climbs in
            training and falls back at a failure. Fractions stand for an iteration cut off.
        iteration_ns: training time of an iteration, checkpoint stalls included, estimated
            from the log; None if no iteration was kept.
    """

    end_ns: int
    spans: tuple[Span, ...]
    failures: tuple[Failure, ...]
    recoveries: tuple[Recovery, ...]
    iterations: tuple[tuple[int, float], ...]
    iteration_ns: float | None


@dataclass(slots=True)
class _Reader:
    """Follows the events; a phase is closed by the event that opens the next."""

    phase: str = TRAINING
    since_ns: int = 0
    start: int = 0
    trained: list[tuple[int, int, int]] = field(default_factory=list)
    """Segments of training: from, to, and the iteration that it began with."""
    spans: list[Span] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    first_span: int = -1
    first_failure: int = 0
    retrieved: bool = False
    end_iteration: int = 0
    end_ns: int = 0

    def enter(self, phase: str, now_ns: int) -> None:
        if now_ns > self.since_ns:
            self.spans.append(Span(self.phase, self.since_ns, now_ns))
        if self.phase == TRAINING and phase != TRAINING:
            self.trained.append((self.since_ns, now_ns, self.start))
        self.phase, self.since_ns = phase, now_ns

    def take(self, event: Event) -> None:
        now_ns, kind, fields = event.time_ns, event.kind, event.fields
        self.end_ns = max(self.end_ns, now_ns)
        if kind == EventKind.FAILURE:
            recovering = self.first_span >= 0
            self.enter("detection", now_ns)
            if not recovering:
                self.first_span, self.first_failure = len(self.spans), len(self.failures)
            machine = fields.get("machine")
            named = machine if isinstance(machine, int) else None
            self.failures.append(Failure(now_ns, str(fields.get("failure", "failure")), named))
        elif kind == EventKind.PLANNED:
            serialises = fields.get("tier") in _IN_MEMORY
            self.enter("serialisation" if serialises else "replacement_wait", now_ns)
        elif kind == EventKind.RESUMED:
            self.resume(event)
        elif kind == EventKind.TRAINER_STARTED:
            self.phase = "warm_up"  # of a real run's first trainers: nothing is trained before
        elif kind == EventKind.RUN_ENDED:
            self.end_iteration = _whole(event, "iteration")
        elif kind in _ENTERED_BY and now_ns >= self.since_ns:
            self.retrieved |= kind == EventKind.RETRIEVED
            self.enter(_ENTERED_BY[kind], now_ns)

    def resume(self, event: Event) -> None:
        self.enter(TRAINING, event.time_ns)
        self.start = _whole(event, "iteration")
        tier = str(event.fields.get("tier", ""))
        self.close(event.time_ns, tier, self.start, _whole(event, "lost_progress_ns"))

    def close(self, now_ns: int, tier: str | None, iteration: int | None, lost_ns: int) -> None:
        if self.first_span < 0:
            return
        failures = tuple(self.failures[self.first_failure :])
        spans = tuple(self.spans[self.first_span :])
        began_ns = failures[0].time_ns
        self.recoveries.append(
            Recovery(began_ns, now_ns, failures, spans, tier, iteration, lost_ns)
        )
        self.first_span = -1


def _whole(event: Event, name: str) -> int:
    value = event.fields.get(name, 0)
    return value if isinstance(value, int) else 0


def read_timeline(events: Iterable[Event]) -> Timeline:
    """Follow an event log from start to end; kinds that say nothing about phases are passed over.

    In a real run each rank writes events of its own; what they come to for the job is read by
    `castor_analysis.job_events`. Its start counts as warm-up, planning as part of the wait for a
    replacement.

    Args:
        events: of one run, simulated or real, in order of time.
    """
    reader = _Reader()
    for event in events_of_the_job(events):
        reader.take(event)
    in_training = reader.phase == TRAINING
    reader.enter("end", reader.end_ns)
    if not in_training:
        reader.close(reader.end_ns, None, None, 0)
    if not reader.retrieved:
        _merge_restart(reader)
    iteration_ns = _iteration_ns(reader, in_training)
    return Timeline(
        reader.end_ns,
        tuple(_with_lost_progress(reader.spans, reader.recoveries)),
        tuple(reader.failures),
        tuple(reader.recoveries),
        tuple(_iterations(reader, in_training, iteration_ns)),
        iteration_ns,
    )


def _merge_restart(reader: _Reader) -> None:
    """Without any event of loaded states, retrieval and warm-up cannot be told apart."""

    def named(span: Span) -> Span:
        return Span(RESTART, span.start_ns, span.end_ns) if span.phase == "retrieval" else span

    reader.spans = [named(span) for span in reader.spans]
    reader.recoveries = [
        Recovery(r.start_ns, r.end_ns, r.failures, tuple(map(named, r.spans)),
                 r.tier, r.iteration, r.lost_progress_ns)
        for r in reader.recoveries
    ]  # fmt: skip


def _with_lost_progress(spans: list[Span], recoveries: list[Recovery]) -> list[Span]:
    """Rename the training before each recovery that it undid, over several segments if need be."""
    result: list[Span] = []
    following = iter(recoveries)
    recovery = next(following, None)
    for span in spans:
        while recovery is not None and recovery.start_ns <= span.start_ns:
            _undo(result, recovery.lost_progress_ns)
            recovery = next(following, None)
        result.append(span)
    while recovery is not None:
        _undo(result, recovery.lost_progress_ns)
        recovery = next(following, None)
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


def _iteration_ns(reader: _Reader, in_training: bool) -> float | None:
    """Estimate from time trained and iterations gained, over all segments together."""
    gained, spent_ns = 0, 0
    resumed = [r for r in reader.recoveries if r.iteration is not None]
    for (from_ns, to_ns, start), recovery in zip(reader.trained, resumed, strict=False):
        gained += (recovery.iteration or 0) - start
        spent_ns += to_ns - from_ns - recovery.lost_progress_ns
    if in_training and reader.trained:
        from_ns, to_ns, start = reader.trained[-1]
        gained += reader.end_iteration - start
        spent_ns += to_ns - from_ns
    return spent_ns / gained if gained > 0 and spent_ns > 0 else None


def _iterations(
    reader: _Reader, in_training: bool, iteration_ns: float | None
) -> list[tuple[int, float]]:
    points: list[tuple[int, float]] = []
    for index, (from_ns, to_ns, start) in enumerate(reader.trained):
        points.append((from_ns, float(start)))
        last = in_training and index == len(reader.trained) - 1
        reached = start + (to_ns - from_ns) / iteration_ns if iteration_ns else float(start)
        if index < len(reader.recoveries):
            recovery = reader.recoveries[index]
            if recovery.iteration is not None and iteration_ns:
                # Better than counting from the start: the stalls of the segment drop out.
                reached = recovery.iteration + recovery.lost_progress_ns / iteration_ns
        points.append((to_ns, float(reader.end_iteration) if last else reached))
        if index < len(reader.recoveries):
            kept = reader.recoveries[index].iteration
            points.append((to_ns, float(reader.end_iteration if kept is None else kept)))
    if not in_training:
        points.append((reader.end_ns, float(reader.end_iteration)))
    return points

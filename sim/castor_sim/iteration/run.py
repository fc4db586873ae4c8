"""An iteration under each scheme: profiled without checkpoints, scheduled, and run with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from castor_configs.schemes import SCHEMES
from castor_policy.chunk_schedule import Link, Schedule, check_chunk_count, check_complete
from castor_policy.defaults import GEMINI_PROFILED_ITERATIONS
from castor_policy.in_flight import chunks_in_flight
from castor_policy.interleaving import NONE
from castor_sim.iteration.engine import Sending, SimulatedIteration, run_iteration
from castor_sim.iteration.tasks import Kind, Lane, Task, check_tasks
from castor_sim.iteration.timeline import (
    IdleSpan,
    Interval,
    Traffic,
    average_spans,
    busy_ns,
    idle_spans,
)
from castor_traces.random_draws import Draws

SCHEME_NAMES = (NONE, *SCHEMES.built_in)
"""Castor's own in the order of Fig. 16; all but the first are of `castor_configs.schemes`."""


def scheme_names() -> tuple[str, ...]:
    """Return the names of all schemes, `NONE` first and those from outside last."""
    return (NONE, *SCHEMES)


_COMPUTES = frozenset({Kind.FORWARD, Kind.RECOMPUTE, Kind.BACKWARD, Kind.COMPUTE})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointTraffic:
    """What one GPU sends and receives; every GPU the same.

    Attributes:
        shard_bytes: C, its share of the model state.
        remote_copies: m - 1.
        link: its share of the network card, all GPUs sending.
        copy_link: its share of the copies to CPU memory; None: there is no such hop, received
            chunks arrive in CPU memory.
        buffer_bytes: R, reserved for received chunks.
        sub_buffers: p, each of R/p.
        mu: share of an idle span that is used.
        shortest_span_ns: shorter idle spans are left alone.
        free_bytes: GPU memory that training leaves; more for received chunks does not fit.
        capture_ns: from the hand-over until the first chunk may leave, where live state is copied
            first.
        commit_ns: records and agreement once everything lies in CPU memory. Above 0, the update
            waits for them, and so does training where the scheme is "blocking", as in the
            runtime. 0: the update waits for the transfers alone, as in the paper.
        late_ns: by how much a span opens later at the other end, which its first chunk waits for.
    """

    shard_bytes: int
    remote_copies: int
    link: Link
    copy_link: Link | None
    buffer_bytes: int
    sub_buffers: int
    mu: Fraction
    shortest_span_ns: int = 0
    free_bytes: int
    capture_ns: int = 0
    commit_ns: int = 0
    late_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationCase:
    """An iteration to simulate.

    Attributes:
        name: for people.
        tasks: its operations.
        machines: that they name: 1 stands for all where all do the same.
        gpus: of one machine.
        traffic: the checkpoint.
        jitter: standard deviation of a computation's time over its mean, 0 to 0.5.
        seed: of the jitter.
        profiled: iterations whose idle spans are averaged (20 in sec. 5.4), where there is jitter.
        measured: iterations that are simulated with each scheme, where there is jitter.
        network_share: what other traffic, such as to storage, leaves of the network card while the
            schemes run; it was not there when the spans were profiled.

    Raises:
        ValueError: a value is out of its range.
    """

    name: str
    tasks: tuple[Task, ...]
    machines: int
    gpus: int
    traffic: CheckpointTraffic
    jitter: float = 0.0
    seed: int = 1
    profiled: int = GEMINI_PROFILED_ITERATIONS
    measured: int = 10
    network_share: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        if not 0.0 <= self.jitter <= 0.5:
            raise ValueError(f"jitter is {self.jitter}: give a standard deviation of 0 to 0.5")
        if not 0 < self.network_share <= 1:
            raise ValueError(
                f"network_share is {self.network_share}: other traffic leaves nothing; give more "
                "than 0 and up to 1"
            )
        if self.profiled < 1 or self.measured < 1:
            raise ValueError("profile and measure at least one iteration")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeResult:
    """What one scheme comes to.

    Attributes:
        scheme: its name.
        iteration_ns: mean time of an iteration.
        iterations_ns: of each measured one.
        idle_ns: mean time in which the busiest machine's network was idle.
        checkpoint_ns: mean time that chunks took on a machine's network, waits not counted.
        complete_ns: when the last chunk was in CPU memory in the first measured iteration; 0
            without a checkpoint.
        sent_bytes: what one GPU sent.
        peak_buffer_bytes: most that one GPU held of received chunks.
        out_of_memory: whether that is more than is free; the times are then what would have been.
        schedules: one for each machine; none without a checkpoint.
        intervals: the first measured iteration.
    """

    scheme: str
    iteration_ns: int
    iterations_ns: tuple[int, ...]
    idle_ns: int
    checkpoint_ns: int
    complete_ns: int
    sent_bytes: int
    peak_buffer_bytes: int
    out_of_memory: bool
    schedules: tuple[Schedule, ...]
    intervals: tuple[Interval, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationReport:
    """An iteration with and without checkpoints.

    Attributes:
        case: what was simulated.
        spans: each machine's profiled idle spans.
        results: by scheme, NONE first.
    """

    case: IterationCase
    spans: tuple[tuple[IdleSpan, ...], ...]
    results: Mapping[str, SchemeResult]

    @property
    def baseline(self) -> SchemeResult:
        """The iteration without checkpoints."""
        return self.results[NONE]

    def overhead(self, scheme: str) -> float:
        """Return by what share of the baseline's iteration the scheme's takes longer."""
        base_ns = sum(self.baseline.iterations_ns)
        return (sum(self.results[scheme].iterations_ns) - base_ns) / base_ns


def simulate_iteration(
    case: IterationCase, schemes: Iterable[str] = SCHEME_NAMES
) -> IterationReport:
    """Profile an iteration, then run it under each scheme.

    The schedules are those of `castor_policy.interleaving`, the very functions that the runtime
    calls. Every scheme meets the same jitter.

    Args:
        case: the iteration.
        schemes: which; the baseline is always run.

    Raises:
        ValueError: there is no such scheme, or the policy refuses the traffic's figures.
        InputError: a scheme is a plugin's that cannot be used.
    """
    wanted, known = set(schemes), scheme_names()
    for name in sorted(wanted - set(known)):
        raise ValueError(f"no scheme {name!r}; there are {', '.join(known)}")
    spans = profile_spans(case)
    results = {
        name: _run_scheme(case, spans, name) for name in known if name in wanted or name == NONE
    }
    return IterationReport(case=case, spans=spans, results=results)


def profile_spans(case: IterationCase) -> tuple[tuple[IdleSpan, ...], ...]:
    """Return each machine's idle spans, averaged over iterations without checkpoints."""
    count = case.profiled if case.jitter else 1
    runs = [
        run_iteration(case.tasks, machines=case.machines, factors=_factors(case, index))
        for index in range(count)
    ]
    shortest_ns = case.traffic.shortest_span_ns
    return tuple(
        average_spans([idle_spans(case.tasks, run.intervals, machine) for run in runs], shortest_ns)
        for machine in range(case.machines)
    )


def schedule_of(case: IterationCase, spans: Sequence[IdleSpan], scheme: str) -> Schedule:
    """Return the policy's schedule for one GPU of a machine with these spans.

    Raises:
        ValueError: a figure of the traffic is out of its range.
    """
    traffic = case.traffic
    schedule = SCHEMES[scheme](
        [span.idle_ns for span in spans],
        traffic.shard_bytes,
        traffic.remote_copies,
        traffic.link,
        traffic.buffer_bytes,
        traffic.sub_buffers,
        traffic.mu,
        traffic.copy_link,
    )
    check_complete(schedule, len(spans), traffic.shard_bytes, traffic.remote_copies)
    return schedule


def _run_scheme(
    case: IterationCase, spans: Sequence[Sequence[IdleSpan]], scheme: str
) -> SchemeResult:
    schedules: tuple[Schedule, ...] = ()
    sendings = None
    if scheme != NONE:
        schedules = tuple(schedule_of(case, of_machine, scheme) for of_machine in spans)
        sendings = [
            _sending(case, of_machine, schedule)
            for of_machine, schedule in zip(spans, schedules, strict=True)
        ]
    first = case.profiled if case.jitter else 0
    runs = [
        run_iteration(
            case.tasks,
            sendings,
            machines=case.machines,
            factors=_factors(case, first + index),
            network_share=case.network_share,
        )
        for index in range(case.measured if case.jitter else 1)
    ]
    peak = max(run.peak_buffer_bytes for run in runs)
    ends = tuple(run.end_ns for run in runs)
    return SchemeResult(
        scheme=scheme,
        iteration_ns=sum(ends) // len(ends),
        iterations_ns=ends,
        idle_ns=sum(_idle_ns(run, case.machines) for run in runs) // len(runs),
        checkpoint_ns=sum(_checkpoint_ns(run, case.machines) for run in runs) // len(runs),
        complete_ns=runs[0].checkpoint_complete_ns,
        sent_bytes=max((_sent_bytes(schedule) for schedule in schedules), default=0),
        peak_buffer_bytes=peak,
        out_of_memory=peak > case.traffic.free_bytes,
        schedules=schedules,
        intervals=runs[0].intervals,
    )


def _sending(case: IterationCase, spans: Sequence[IdleSpan], schedule: Schedule) -> Sending:
    traffic = case.traffic
    piece = max(1, traffic.buffer_bytes // traffic.sub_buffers)
    check_chunk_count(traffic.shard_bytes, piece)  # of any scheme: all copy their own replica
    whole, rest = divmod(traffic.shard_bytes, piece)
    return Sending(
        schedule=schedule,
        opens_after=tuple(span.after for span in spans),
        link=traffic.link,
        copy_link=traffic.copy_link,
        sub_buffers=chunks_in_flight(schedule.scheme, traffic.sub_buffers),
        local_pieces=(piece,) * whole + ((rest,) if rest else ()),
        gpus=case.gpus,
        capture_ns=traffic.capture_ns,
        commit_ns=traffic.commit_ns,
        late_ns=traffic.late_ns,
    )


def _factors(case: IterationCase, index: int) -> tuple[float, ...] | None:
    """Draw by what each computation is longer or shorter: uniform, of the given deviation."""
    if not case.jitter:
        return None
    draws = Draws(case.seed, "iteration jitter", index).uniform(len(case.tasks))
    width = case.jitter * math.sqrt(12.0)
    return tuple(
        1.0 + width * (float(draw) - 0.5) if task.kind in _COMPUTES else 1.0
        for task, draw in zip(case.tasks, draws, strict=True)
    )


def _idle_ns(run: SimulatedIteration, machines: int) -> int:
    busiest = max(busy_ns(run.intervals, machine, Lane.NETWORK) for machine in range(machines))
    return run.end_ns - busiest


def _checkpoint_ns(run: SimulatedIteration, machines: int) -> int:
    total = sum(i.duration_ns for i in run.intervals if i.kind == Traffic.CHUNK)
    return total // machines


def _sent_bytes(schedule: Schedule) -> int:
    return sum(chunk.size_bytes for chunk in schedule.chunks)

"""What a calibration reads in a run's folder: the profiled iteration of every rank, and the links.

Ranks run the same program, so their profiles have the same collectives in the same order; what
differs is when. A median over the ranks stands for all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from castor_analysis.compare.settings import Setting, setting_of
from castor_configs.errors import InputError
from castor_policy.chunk_schedule import Link
from castor_policy.interleaving import NONE
from castor_policy.link_fit import fit_link
from castor_records.event_log import events_of_run
from castor_records.events.event import Entry, Event, generation_of, of_kind
from castor_records.events.training import (
    CheckpointCompleted,
    IterationEnded,
    LinkMeasured,
    Scheduled,
    SpansProfiled,
)
from castor_records.run_files import RunFiles

_NS_PER_S: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective of an iteration, in nanoseconds from the iteration's start.

    Attributes:
        operation: its name.
        size_bytes: the larger of what goes in and what comes out on a rank.
        issued_ns, ended_ns: it was under way from the one to the other.
        waited_ns, resumed_ns: the main thread stood still from the one to the other; -1 if it was
            never waited for.
    """

    operation: str
    size_bytes: int
    issued_ns: int
    waited_ns: int
    resumed_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A typical iteration, of one rank or of all.

    Attributes:
        collectives: in the order of issue.
        before_update_ns: when the update begins.
        update_ns: how long it takes.
        deviation: standard deviation of an iteration's idle time over its mean.
    """

    collectives: tuple[Collective, ...]
    before_update_ns: int
    update_ns: int
    deviation: float

    @property
    def program(self) -> tuple[tuple[str, int], ...]:
        """What is sent, whenever."""
        return tuple((one.operation, one.size_bytes) for one in self.collectives)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """What a schedule sends.

    Attributes:
        sizes_bytes: of each chunk.
        spans: in how many idle spans.
    """

    sizes_bytes: tuple[int, ...]
    spans: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRun:
    """What one run says.

    Attributes:
        folder: where it lies.
        setting: in which it was made.
        compute: "paced" or "real".
        timelines: of each rank, by rank.
        link: of checkpoints, from the median over the ranks of each measured time; None: it was
            not measured.
        copy_link: to CPU memory; None: there is no such hop, or no schedule that says so.
        shard_bytes: what travels of one rank's checkpoint; 0: the run does not say.
        iterations_s: how long iterations took, the first few left out.
        captures_s: of checkpoints that followed the schedule, from hand-over to the own copy.
        networks_s: of the same, the time of their chunks on the network.
        chunks: of the newest schedule; None: there is none.
        train_busy_s: time of settled iterations in which a collective was under way.
    """

    folder: RunFiles
    setting: Setting
    compute: str
    timelines: tuple[Timeline, ...]
    link: Link | None
    copy_link: Link | None
    shard_bytes: int
    iterations_s: tuple[float, ...]
    captures_s: tuple[float, ...]
    networks_s: tuple[float, ...]
    chunks: Chunks | None
    train_busy_s: tuple[float, ...]

    @property
    def takes_checkpoints(self) -> bool:
        """Whether its iterations had checkpoint traffic."""
        return self.setting.scheme != NONE


def read_calibration_run(folder: RunFiles) -> CalibrationRun:
    """Read a run that has ended.

    Raises:
        InputError: it is no run, has not ended, or its log lacks what a calibration needs or is
            damaged.
    """
    setting = setting_of(folder)
    compute = folder.result().compute or "real"
    entries = events_of_run(folder)
    timelines, generation = _timelines(entries, setting.nodes * setting.ranks_per_node, folder)
    own = [entry for entry in entries if generation_of(entry.event) == generation]
    measured = [entry.event for entry in of_kind(own, LinkMeasured)]
    schedules = [entry.event for entry in of_kind(own, Scheduled)]
    scheduled = max((event.iteration for event in schedules), default=0)
    profiled = [entry.event.iteration for entry in of_kind(own, SpansProfiled)]
    complete = [entry.event for entry in of_kind(own, CheckpointCompleted)]
    complete = [event for event in complete if event.iteration > scheduled]
    ended = [entry.event for entry in of_kind(own, IterationEnded)]
    ended = [event for event in ended if event.iteration > min(profiled, default=0)]
    return CalibrationRun(
        folder=folder,
        setting=setting,
        compute="paced" if compute == "paced" else "real",
        timelines=timelines,
        link=_link(measured),
        copy_link=_newest((one.copy_alpha_ns, one.copy_bandwidth_bps) for one in schedules),
        shard_bytes=_shard_bytes(own, setting),
        iterations_s=_iterations_s(own),
        captures_s=_known(event.captured_s for event in complete),
        networks_s=_known(event.network_s for event in complete),
        chunks=_chunks(schedules),
        train_busy_s=_known(event.train_busy_s for event in ended),
    )


def typical_timeline(timelines: Sequence[Timeline]) -> Timeline:
    """Return the median of each time over timelines of one program.

    Raises:
        ValueError: there is none, or they are of different programs.
    """
    if not timelines:
        raise ValueError("no iteration was profiled")
    program = timelines[0].program
    for timeline in timelines[1:]:
        if timeline.program != program:
            raise ValueError(_difference(program, timeline.program))
    columns = zip(*(timeline.collectives for timeline in timelines), strict=True)
    return Timeline(
        collectives=tuple(_typical_collective(column) for column in columns),
        before_update_ns=_median([one.before_update_ns for one in timelines]),
        update_ns=_median([one.update_ns for one in timelines]),
        deviation=statistics.median(one.deviation for one in timelines),
    )


def _typical_collective(measured: Sequence[Collective]) -> Collective:
    waited = [one for one in measured if one.waited_ns >= 0]
    return Collective(
        operation=measured[0].operation,
        size_bytes=measured[0].size_bytes,
        issued_ns=_median([one.issued_ns for one in measured]),
        waited_ns=_median([one.waited_ns for one in waited]) if waited else -1,
        resumed_ns=_median([one.resumed_ns for one in waited]) if waited else -1,
        ended_ns=_median([one.ended_ns for one in measured]),
    )


def _median(values: Sequence[int]) -> int:
    return round(statistics.median(values))


def _difference(one: Sequence[tuple[str, int]], other: Sequence[tuple[str, int]]) -> str:
    for index, (here, there) in enumerate(zip(one, other, strict=False)):
        if here != there:
            return (
                f"collective {index} is {here[0]} of {here[1]} B on one and {there[0]} of "
                f"{there[1]} B on another"
            )
    return f"one has {len(one)} collectives and another {len(other)}"


def _timelines(
    entries: Sequence[Entry[Event]], ranks: int, folder: RunFiles
) -> tuple[tuple[Timeline, ...], int]:
    """Return each rank's profile, of the one that most iterations went into, and its generation."""
    profiles: dict[tuple[int, int], dict[int, SpansProfiled]] = {}
    for entry in of_kind(entries, SpansProfiled):
        event = entry.event
        profiles.setdefault((event.generation, event.iteration), {})[event.rank] = event
    whole_ones = {key: found for key, found in profiles.items() if len(found) == ranks}
    if not whole_ones:
        raise InputError(
            "has no profile of an iteration from every rank: train with --scheme none for at "
            "least --profile-iterations and a few more iterations",
            file=folder.events_file,
        )
    key = max(whole_ones, key=lambda key: (whole_ones[key][0].iterations or -1, key))
    found = whole_ones[key]
    timelines = tuple(_timeline(event, folder) for _, event in sorted(found.items()))
    try:
        typical_timeline(timelines)
    except ValueError as error:
        raise InputError(
            f"the ranks did not do the same: {error}", file=folder.events_file
        ) from error
    return timelines, key[0]


def _timeline(event: SpansProfiled, folder: RunFiles) -> Timeline:
    if event.before_update_ns <= 0:
        raise InputError(
            f"the spans_profiled of rank {event.rank} has before_update_ns "
            f"{event.before_update_ns}: expected more than 0",
            file=folder.events_file,
        )
    rows = zip(
        event.ops,
        event.op_bytes,
        event.issued_ns,
        event.waited_ns,
        event.resumed_ns,
        event.ended_ns,
        strict=True,
    )
    return Timeline(
        collectives=tuple(
            Collective(
                operation=name,
                size_bytes=size_bytes,
                issued_ns=issued_ns,
                waited_ns=waited_ns,
                resumed_ns=resumed_ns,
                ended_ns=ended_ns,
            )
            for name, size_bytes, issued_ns, waited_ns, resumed_ns, ended_ns in rows
        ),
        before_update_ns=event.before_update_ns,
        update_ns=max(0, event.update_ns or 0),
        deviation=event.deviation or 0.0,
    )


def _newest(hops: Iterable[tuple[int | None, int | None]]) -> Link | None:
    """Return the hop that was named last, by alpha and bandwidth; all ranks name the same."""
    known = [(alpha_ns or 0, rate_bps) for alpha_ns, rate_bps in hops if rate_bps]
    return Link(max(0, known[-1][0]), known[-1][1]) if known else None


def _link(measured: Sequence[LinkMeasured]) -> Link | None:
    """Fit the link to the median over the ranks of the time that each size took.

    The ranks schedule by the slowest fit of all, which is careful; how long chunks really take is
    what a median says.
    """
    rows = []
    for one in measured:
        sizes, times = one.sizes_bytes, one.times_ns
        if sizes is not None and times is not None and len(sizes) == len(times):
            rows.append((sizes, times))
    agreed = _newest((one.agreed_alpha_ns, one.agreed_bandwidth_bps) for one in measured)
    if not rows or len({sizes for sizes, _ in rows}) > 1:
        return agreed
    columns = zip(*(times for _, times in rows), strict=True)
    times_ns = [round(statistics.median(column)) for column in columns]
    try:
        return fit_link(rows[0][0], times_ns)
    except ValueError:
        return agreed


def _shard_bytes(entries: Sequence[Entry[Event]], setting: Setting) -> int:
    """Return the largest part of a rank, wherever the log has it."""
    stated = max((entry.event.shard_bytes or 0 for entry in of_kind(entries, Scheduled)), default=0)
    complete = of_kind(entries, CheckpointCompleted)
    sent = max((entry.event.sent_bytes or 0 for entry in complete), default=0)
    return max(stated, sent // max(1, setting.replicas - 1))


def _iterations_s(entries: Sequence[Entry[Event]]) -> tuple[float, ...]:
    """Return the time from the end of an iteration to the end of the next, once profiled."""
    profiled = [entry.event.iteration for entry in of_kind(entries, SpansProfiled)]
    ended: dict[int, dict[int, int]] = {}
    for entry in of_kind(entries, IterationEnded):
        ended.setdefault(entry.event.rank, {})[entry.event.iteration] = entry.time_ns
    periods: dict[int, list[int]] = {}
    for of_rank in ended.values():
        for (_, before_ns), (iteration, now_ns) in pairwise(sorted(of_rank.items())):
            # The first ones differ: DeepSpeed does not know the order of its parameters yet.
            if iteration > min(profiled, default=0) or iteration > max(of_rank) // 2:
                periods.setdefault(iteration, []).append(now_ns - before_ns)
    return tuple(statistics.median(of) / _NS_PER_S for _, of in sorted(periods.items()))


def _chunks(schedules: Sequence[Scheduled]) -> Chunks | None:
    """Return the chunks of the newest schedule; all ranks have the same."""
    for event in reversed(schedules):
        if event.chunk_bytes and event.chunk_spans is not None:
            return Chunks(sizes_bytes=event.chunk_bytes, spans=len(set(event.chunk_spans)))
    return None


def _known(figures: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(float(figure) for figure in figures if figure is not None)

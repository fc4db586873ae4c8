"""What a calibration reads in a run's folder: the profiled iteration of every rank, and the links.

Ranks run the same program, so their profiles have the same collectives in the same order; what
differs is when. A median over the ranks stands for all.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from castor_analysis.compare.settings import NONE, Setting, setting_of
from castor_analysis.job_events import whole
from castor_analysis.run_log import COLLECTIVE_COLUMNS, events_of_run
from castor_configs.errors import InputError
from castor_policy.events import Event, EventKind
from castor_policy.interleaving import Link
from castor_policy.link_fit import fit_link
from castor_runtime.launcher.run_folder import RunFolder

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

    folder: RunFolder
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


def read_calibration_run(folder: RunFolder) -> CalibrationRun:
    """Read a run that has ended.

    Raises:
        InputError: it is no run, has not ended, or its log lacks what a calibration needs or is
            damaged.
    """
    setting = setting_of(folder)
    compute = str(folder.result().get("compute") or "real")
    events = events_of_run(folder)
    timelines, generation = _timelines(events, setting.nodes * setting.ranks_per_node, folder)
    own = [event for event in events if whole(event, "generation") == generation]
    measured = [event for event in own if event.kind == EventKind.LINK_MEASURED]
    schedules = [event for event in own if event.kind == EventKind.SCHEDULED]
    scheduled = max((whole(event, "iteration") for event in schedules), default=0)
    profiles = [event for event in own if event.kind == EventKind.SPANS_PROFILED]
    profiled = min((whole(event, "iteration") for event in profiles), default=0)
    return CalibrationRun(
        folder=folder,
        setting=setting,
        compute="paced" if compute == "paced" else "real",
        timelines=timelines,
        link=_link(measured),
        copy_link=_hop(schedules, "copy_alpha_ns", "copy_bandwidth_bps"),
        shard_bytes=_shard_bytes(own, setting),
        iterations_s=_iterations_s(own),
        captures_s=_figures(own, EventKind.CHECKPOINT_COMPLETED, "captured_s", scheduled),
        networks_s=_figures(own, EventKind.CHECKPOINT_COMPLETED, "network_s", scheduled),
        chunks=_chunks(schedules),
        train_busy_s=_figures(own, EventKind.ITERATION_ENDED, "train_busy_s", profiled),
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
    events: Sequence[Event], ranks: int, folder: RunFolder
) -> tuple[tuple[Timeline, ...], int]:
    """Return each rank's profile, of the one that most iterations went into, and its generation."""
    profiles: dict[tuple[int, int], dict[int, Event]] = {}
    for event in events:
        if event.kind == EventKind.SPANS_PROFILED:
            key = whole(event, "generation"), whole(event, "iteration")
            profiles.setdefault(key, {})[whole(event, "rank")] = event
    whole_ones = {key: found for key, found in profiles.items() if len(found) == ranks}
    if not whole_ones:
        raise InputError(
            "has no profile of an iteration from every rank: train with --scheme none for at "
            "least --profile-iterations and a few more iterations",
            file=folder.events_file,
        )
    key = max(whole_ones, key=lambda key: (whole(whole_ones[key][0], "iterations"), key))
    found = whole_ones[key]
    timelines = tuple(_timeline(event, folder) for _, event in sorted(found.items()))
    try:
        typical_timeline(timelines)
    except ValueError as error:
        raise InputError(
            f"the ranks did not do the same: {error}", file=folder.events_file
        ) from error
    return timelines, key[0]


def _timeline(event: Event, folder: RunFolder) -> Timeline:
    names = event.fields.get("ops")
    columns = [event.fields.get(name) for name in COLLECTIVE_COLUMNS]
    if not isinstance(names, list) or not all(isinstance(column, list) for column in columns):
        raise InputError(
            f"the spans_profiled of rank {whole(event, 'rank')} lacks one of ops, "
            f"{', '.join(COLLECTIVE_COLUMNS)}",
            file=folder.events_file,
        )
    if whole(event, "before_update_ns") <= 0:
        raise InputError(
            f"the spans_profiled of rank {whole(event, 'rank')} has before_update_ns "
            f"{event.fields.get('before_update_ns')!r}: expected more than 0",
            file=folder.events_file,
        )
    rows = zip(names, *(column for column in columns if isinstance(column, list)), strict=True)
    deviation = event.fields.get("deviation")
    return Timeline(
        collectives=tuple(
            Collective(
                operation=str(name),
                size_bytes=int(size),
                issued_ns=int(issued),
                waited_ns=int(waited),
                resumed_ns=int(resumed),
                ended_ns=int(ended),
            )
            for name, size, issued, waited, resumed, ended in rows
        ),
        before_update_ns=whole(event, "before_update_ns"),
        update_ns=max(0, whole(event, "update_ns")),
        deviation=float(deviation) if isinstance(deviation, int | float) else 0.0,
    )


def _hop(events: Sequence[Event], alpha: str, bandwidth: str) -> Link | None:
    """Return the hop that the newest of the events names; all ranks name the same."""
    for event in reversed(events):
        if whole(event, bandwidth) > 0:
            return Link(max(0, whole(event, alpha)), whole(event, bandwidth))
    return None


def _link(events: Sequence[Event]) -> Link | None:
    """Fit the link to the median over the ranks of the time that each size took.

    The ranks schedule by the slowest fit of all, which is careful; how long chunks really take is
    what a median says.
    """
    rows = []
    for event in events:
        sizes, times = event.fields.get("sizes_bytes"), event.fields.get("times_ns")
        if isinstance(sizes, list) and isinstance(times, list) and len(sizes) == len(times):
            rows.append((tuple(map(int, sizes)), tuple(map(int, times))))
    if not rows or len({sizes for sizes, _ in rows}) > 1:
        return _hop(events, "agreed_alpha_ns", "agreed_bandwidth_bps")
    columns = zip(*(times for _, times in rows), strict=True)
    times_ns = [round(statistics.median(column)) for column in columns]
    try:
        return fit_link(rows[0][0], times_ns)
    except ValueError:
        return _hop(events, "agreed_alpha_ns", "agreed_bandwidth_bps")


def _shard_bytes(events: Sequence[Event], setting: Setting) -> int:
    """Return the largest part of a rank, wherever the log has it."""
    stated = max((whole(event, "shard_bytes") for event in events), default=0)
    sent = max((whole(event, "sent_bytes") for event in events), default=0)
    return max(0, stated, sent // max(1, setting.replicas - 1))


def _iterations_s(events: Sequence[Event]) -> tuple[float, ...]:
    """Return the time from the end of an iteration to the end of the next, once profiled."""
    profiled = [whole(e, "iteration") for e in events if e.kind == EventKind.SPANS_PROFILED]
    ended: dict[int, dict[int, int]] = {}
    for event in events:
        if event.kind == EventKind.ITERATION_ENDED:
            ended.setdefault(whole(event, "rank"), {})[whole(event, "iteration")] = event.time_ns
    periods: dict[int, list[int]] = {}
    for of_rank in ended.values():
        for (_, before_ns), (iteration, now_ns) in pairwise(sorted(of_rank.items())):
            # The first ones differ: DeepSpeed does not know the order of its parameters yet.
            if iteration > min(profiled, default=0) or iteration > max(of_rank) // 2:
                periods.setdefault(iteration, []).append(now_ns - before_ns)
    return tuple(statistics.median(of) / _NS_PER_S for _, of in sorted(periods.items()))


def _chunks(schedules: Sequence[Event]) -> Chunks | None:
    """Return the chunks of the newest schedule; all ranks have the same."""
    for event in reversed(schedules):
        sizes, spans = event.fields.get("chunk_bytes"), event.fields.get("chunk_spans")
        if isinstance(sizes, list) and isinstance(spans, list) and sizes:
            return Chunks(sizes_bytes=tuple(map(int, sizes)), spans=len(set(spans)))
    return None


def _figures(events: Sequence[Event], kind: EventKind, name: str, after: int) -> tuple[float, ...]:
    """Return a figure of each event of a kind, of iterations after the one named."""
    found = []
    for event in events:
        value = event.fields.get(name)
        if event.kind != kind or whole(event, "iteration") <= after:
            continue
        if isinstance(value, int | float):
            found.append(float(value))
    return tuple(found)

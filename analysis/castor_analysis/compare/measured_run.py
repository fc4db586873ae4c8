"""What was measured in one real run: samples of each quantity, once training had settled.

Of every iteration the median over the ranks is one sample: all ranks wait for each other, and one
that is late shows in the next iteration of all. Iterations up to the first under the schedule are
left out, and so is the last checkpoint, which no training traffic meets.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castor_analysis.compare.settings import Setting, setting_of
from castor_configs.errors import InputError
from castor_policy.interleaving import NONE
from castor_records.event_log import events_of_run
from castor_records.events.event import Entry, Event, generation_of, of_kind
from castor_records.events.failures import Resumed
from castor_records.events.training import (
    CheckpointCompleted,
    IterationEnded,
    Scheduled,
    SpansProfiled,
)
from castor_records.result import Result
from castor_records.run_files import RunFiles

ITERATION: Final = "iteration_s"
IDLE: Final = "idle_s"
NETWORK: Final = "checkpoint_network_s"
COMPLETE: Final = "checkpoint_complete_s"

QUANTITIES: Final = (ITERATION, IDLE, NETWORK, COMPLETE)
"""What is measured of each iteration, in the order of reports."""

_WARM_UP: Final = 3
"""Iterations that are left out where no schedule says when training had settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective of an iteration as it was measured on one rank.

    Attributes:
        operation: such as "all_gather".
        size_bytes: of the larger of its tensors.
        start_ns: from the iteration's start: when it was issued, or when the one before had ended.
        end_ns: likewise.
    """

    operation: str
    size_bytes: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """A run that has ended.

    Attributes:
        folder: where it lies.
        setting: of it.
        result: what result.json holds.
        entries: its log.
        samples: by quantity, one for each iteration that counts.
        collectives: of an iteration of rank 0 while it was profiled, without checkpoint traffic.
        update_from_ns: when that iteration's update began; 0: it was not profiled.
        checkpoint_bytes: what one rank sent with a checkpoint; 0: none.
    """

    folder: RunFiles
    setting: Setting
    result: Result
    entries: Sequence[Entry[Event]]
    samples: Mapping[str, Sequence[float]]
    collectives: tuple[Collective, ...]
    update_from_ns: int
    checkpoint_bytes: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.path.name

    @property
    def failed(self) -> bool:
        """Whether anything failed in it, so that its iterations are no measure of a scheme."""
        return bool(self.result.recoveries)

    @property
    def replays(self) -> bool:
        """Whether its failures came from a trace."""
        return any(word.partition("=")[0] == "--replay" for word in self.result.command)


def read_run(path: Path) -> MeasuredRun:
    """Read a run's folder.

    Raises:
        InputError: it is none, the run has not ended or did not finish, it says too little, or its
            log is damaged.
    """
    folder = RunFiles(path)
    setting = setting_of(folder)
    result = folder.result()
    if result.outcome != "finished":
        why = result.reason or f"it was {result.outcome}"
        raise InputError(f"holds no finished run ({why}): leave it out", file=folder.path)
    entries = events_of_run(folder)
    sent = [entry.event.sent_bytes or 0 for entry in of_kind(entries, CheckpointCompleted)]
    collectives, update_from_ns = _profiled(entries)
    return MeasuredRun(
        folder=folder,
        setting=setting,
        result=result,
        entries=entries,
        samples=_samples(entries, setting),
        collectives=collectives,
        update_from_ns=update_from_ns,
        checkpoint_bytes=max(sent, default=0),
    )


def _samples(entries: Sequence[Entry[Event]], setting: Setting) -> dict[str, list[float]]:
    """Return the samples of the last generation: an earlier one ended in a failure."""
    newest = max((generation_of(entry.event) or 0 for entry in entries), default=0)
    own = [entry for entry in entries if generation_of(entry.event) == newest]
    if setting.scheme != NONE and not any(of_kind(own, Scheduled)):
        return {}  # its checkpoints were sent whenever they could be, as those before a schedule
    settled = _settled(own)
    ended = [entry.event for entry in of_kind(own, IterationEnded)]
    completed = [entry.event for entry in of_kind(own, CheckpointCompleted)]
    last = max((event.iteration for event in ended), default=0)
    found = {
        ITERATION: [(event.iteration, event.seconds) for event in ended],
        IDLE: [(event.iteration, event.idle_s) for event in ended],
        NETWORK: [(e.iteration, e.network_s) for e in completed if e.iteration != last],
        COMPLETE: [(e.iteration, e.sent_s) for e in completed if e.iteration != last],
    }
    ranks = setting.nodes * setting.ranks_per_node
    medians = {name: _medians(figures, settled, ranks) for name, figures in found.items()}
    return {name: samples for name, samples in medians.items() if samples}


def _medians(figures: Sequence[tuple[int, float | None]], settled: int, ranks: int) -> list[float]:
    """Return the median of each iteration after `settled` of which every rank has a figure."""
    of_iteration: dict[int, list[float]] = {}
    for iteration, value in figures:
        if value is not None and iteration > settled:
            of_iteration.setdefault(iteration, []).append(float(value))
    return [
        statistics.median(values)
        for _, values in sorted(of_iteration.items())
        if len(values) == ranks
    ]


def _settled(entries: Sequence[Entry[Event]]) -> int:
    """Return the last iteration that does not count."""
    scheduled = [entry.event.iteration for entry in of_kind(entries, Scheduled)]
    if scheduled:
        # The schedule's first iteration still meets what was captured under none. A later schedule,
        # after a drift, changes nothing of the kind: it takes over from one.
        return min(scheduled) + 1
    profiled = [entry.event.iteration for entry in of_kind(entries, SpansProfiled)]
    started = [entry.event.iteration for entry in of_kind(entries, Resumed)]
    warm = max(started, default=0) + _WARM_UP
    return max(min(profiled) + 1, warm) if profiled else warm


def _profiled(entries: Sequence[Entry[Event]]) -> tuple[tuple[Collective, ...], int]:
    """Return the collectives of rank 0's first profile, and when the update began."""
    profiles = (entry.event for entry in of_kind(entries, SpansProfiled))
    profile = next((event for event in profiles if event.rank == 0), None)
    if profile is None:
        return (), 0
    found: list[Collective] = []
    free_ns = 0
    rows = zip(profile.ops, profile.op_bytes, profile.issued_ns, profile.ended_ns, strict=True)
    for operation, size_bytes, issued_ns, ended_ns in rows:
        start_ns = max(issued_ns, free_ns)
        free_ns = max(free_ns, ended_ns)
        found.append(
            Collective(
                operation=operation, size_bytes=size_bytes, start_ns=start_ns, end_ns=free_ns
            )
        )
    return tuple(found), profile.before_update_ns

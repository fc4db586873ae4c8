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
from typing import Any, Final

from castor_analysis.compare.settings import NONE, Setting, setting_of
from castor_analysis.job_events import whole
from castor_analysis.run_log import events_of_run
from castor_configs.errors import InputError
from castor_policy.events import Event, EventKind
from castor_runtime.launcher.run_folder import RunFolder

ITERATION: Final = "iteration_s"
IDLE: Final = "idle_s"
NETWORK: Final = "checkpoint_network_s"
COMPLETE: Final = "checkpoint_complete_s"

QUANTITIES: Final = (ITERATION, IDLE, NETWORK, COMPLETE)
"""What is measured of each iteration, in the order of reports."""

_FIELDS: Final = (
    (EventKind.ITERATION_ENDED, "seconds", ITERATION),
    (EventKind.ITERATION_ENDED, "idle_s", IDLE),
    (EventKind.CHECKPOINT_COMPLETED, "network_s", NETWORK),
    (EventKind.CHECKPOINT_COMPLETED, "sent_s", COMPLETE),
)
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
        events: its log.
        samples: by quantity, one for each iteration that counts.
        collectives: of an iteration of rank 0 while it was profiled, without checkpoint traffic.
        update_from_ns: when that iteration's update began; 0: it was not profiled.
        checkpoint_bytes: what one rank sent with a checkpoint; 0: none.
    """

    folder: RunFolder
    setting: Setting
    result: Mapping[str, Any]
    events: Sequence[Event]
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
        return bool(self.result.get("recoveries"))

    @property
    def replays(self) -> bool:
        """Whether its failures came from a trace."""
        command = self.result.get("command") or ()
        return any(str(word).partition("=")[0] == "--replay" for word in command)


def read_run(path: Path) -> MeasuredRun:
    """Read a run's folder.

    Raises:
        InputError: it is none, the run has not ended or did not finish, it says too little, or its
            log is damaged.
    """
    folder = RunFolder(path)
    setting = setting_of(folder)
    result = folder.result()
    if result.get("outcome") != "finished":
        why = result.get("reason") or f"it was {result.get('outcome')}"
        raise InputError(f"holds no finished run ({why}): leave it out", file=folder.path)
    events = events_of_run(folder)
    sent = [whole(e, "sent_bytes") for e in events if e.kind == EventKind.CHECKPOINT_COMPLETED]
    collectives, update_from_ns = _profiled(events)
    return MeasuredRun(
        folder=folder,
        setting=setting,
        result=result,
        events=events,
        samples=_samples(events, setting),
        collectives=collectives,
        update_from_ns=update_from_ns,
        checkpoint_bytes=max(sent, default=0),
    )


def _samples(events: Sequence[Event], setting: Setting) -> dict[str, list[float]]:
    """Return the samples of the last generation: an earlier one ended in a failure."""
    newest = max((whole(event, "generation") for event in events), default=0)
    own = [event for event in events if whole(event, "generation") == newest]
    if setting.scheme != NONE and not any(e.kind == EventKind.SCHEDULED for e in own):
        return {}  # its checkpoints were sent whenever they could be, as those before a schedule
    settled = _settled(own)
    ended = [e for e in own if e.kind == EventKind.ITERATION_ENDED]
    last = max((whole(event, "iteration") for event in ended), default=0)
    ranks = setting.nodes * setting.ranks_per_node
    samples: dict[str, list[float]] = {}
    for kind, name, quantity in _FIELDS:
        of_iteration: dict[int, list[float]] = {}
        for event in own:
            value, iteration = event.fields.get(name), whole(event, "iteration")
            if event.kind == kind and isinstance(value, int | float) and iteration > settled:
                of_iteration.setdefault(iteration, []).append(float(value))
        if kind == EventKind.CHECKPOINT_COMPLETED:
            of_iteration.pop(last, None)
        found = [
            statistics.median(values)
            for _, values in sorted(of_iteration.items())
            if len(values) == ranks
        ]
        if found:
            samples[quantity] = found
    return samples


def _settled(events: Sequence[Event]) -> int:
    """Return the last iteration that does not count."""
    scheduled = [whole(e, "iteration") for e in events if e.kind == EventKind.SCHEDULED]
    if scheduled:
        # The schedule's first iteration still meets what was captured under none. A later schedule,
        # after a drift, changes nothing of the kind: it takes over from one.
        return min(scheduled) + 1
    profiled = [whole(e, "iteration") for e in events if e.kind == EventKind.SPANS_PROFILED]
    started = [whole(e, "iteration") for e in events if e.kind == EventKind.RESUMED]
    warm = max(started, default=0) + _WARM_UP
    return max(min(profiled) + 1, warm) if profiled else warm


def _profiled(events: Sequence[Event]) -> tuple[tuple[Collective, ...], int]:
    """Return the collectives of rank 0's first profile, and when the update began."""
    profile = next(
        (e for e in events if e.kind == EventKind.SPANS_PROFILED and e.fields.get("rank") == 0),
        None,
    )
    if profile is None:
        return (), 0
    columns = [profile.fields.get(n) for n in ("ops", "op_bytes", "issued_ns", "ended_ns")]
    if not all(isinstance(column, list) for column in columns):
        return (), 0
    found: list[Collective] = []
    free_ns = 0
    rows: Any = zip(*(column for column in columns if isinstance(column, list)), strict=True)
    for operation, size_bytes, issued_ns, ended_ns in rows:
        start_ns = max(issued_ns, free_ns)
        free_ns = max(free_ns, ended_ns)
        found.append(
            Collective(
                operation=operation, size_bytes=size_bytes, start_ns=start_ns, end_ns=free_ns
            )
        )
    return tuple(found), whole(profile, "before_update_ns")

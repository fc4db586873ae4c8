"""Failures of the same job under each system: what they cost, and Eq. 1 from what was measured."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rank_log import Outage, Record, find_outage, life_of, of_kind
from samples import Spread
from scale import PAPER_CHECKPOINT_S, STRAWMAN_INTERVAL_S, Scale, checkpoints
from systems import (
    START_LIMIT_S,
    CastorRun,
    SystemRun,
    castor,
    storage_options,
    torchrun,
    warm_start,
)

from castor_policy.frequency import highfreq_interval_iterations, wasted_time_s
from castor_records.events.event import Entry, Event
from castor_records.events.event import of_kind as entries_of
from castor_records.events.failures import Detected, Resumed, Retrieved

_WARM_UP = 8
_OUTAGE_LIMIT_S = 240.0


@dataclass(frozen=True, slots=True)
class SystemResult:
    """What one system's failures came to.

    Attributes:
        name: of the system.
        interval: iterations between checkpoints.
        iteration_s: without failures.
        checkpoint_s: Eq. 1's t_ckpt: from an iteration's end until its checkpoint is complete.
        retrieval_s: Eq. 1's t_rtvl.
        outages: each failure.
        detection_s: of Castor: failure to detection.
        parts: of Castor: seconds by part, as result.json has them.
        losses_agree: iterations that were run again gave the same loss.
    """

    name: str
    interval: int
    iteration_s: float
    checkpoint_s: Spread
    retrieval_s: Spread
    outages: tuple[Outage, ...]
    detection_s: tuple[float, ...] = ()
    parts: dict[str, Spread] = field(default_factory=dict)
    losses_agree: bool = True

    @property
    def wasted_s(self) -> float:
        """Eq. 1 with the medians."""
        return wasted_time_s(
            self.checkpoint_s.median,
            1.0 / (self.interval * self.iteration_s),
            self.retrieval_s.median,
        )

    @property
    def outage_s(self) -> Spread:
        """Failure to the end of the first new iteration."""
        return Spread.of([outage.new_s for outage in self.outages])

    @property
    def restart_s(self) -> Spread:
        """Failure to the end of the first iteration, new or not."""
        return Spread.of([outage.first_s for outage in self.outages])

    @property
    def lost(self) -> Spread:
        """Iterations done again."""
        return Spread.of([outage.lost for outage in self.outages])

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return {
            "name": self.name,
            "interval_iterations": self.interval,
            "iteration_s": self.iteration_s,
            "wasted_s": self.wasted_s,
            "checkpoint_s": self.checkpoint_s.to_json(),
            "retrieval_s": self.retrieval_s.to_json(),
            "outage_s": self.outage_s.to_json(),
            "restart_s": self.restart_s.to_json(),
            "iterations_lost": self.lost.to_json(),
            "parts_s": {
                "started": [outage.started_s for outage in self.outages],
                "built": [outage.built_s for outage in self.outages],
                "loaded": [outage.loaded_s for outage in self.outages],
            },
            "castor_parts_s": {name: spread.to_json() for name, spread in self.parts.items()},
            "detection_s": list(self.detection_s),
            "losses_of_repeated_iterations_agree": self.losses_agree,
        }


@dataclass(frozen=True, slots=True)
class Way:
    """How Castor recovers.

    Attributes:
        lease_s: after which a silent machine is lost.
        with_standbys: a standby waits for each machine that will be lost.
        in_place: the script goes on without a restart.
        warm_spares: a spare stands beside each trainer.
    """

    lease_s: float = 5.0
    with_standbys: bool = False
    in_place: bool = False
    warm_spares: bool = False


# ---- Castor ------------------------------------------------------------------------------------


def castor_outages(
    out: Path,
    ranks: int,
    scale: Scale,
    kind: str,
    failures: int,
    seed: int,
    way: Way,
) -> SystemResult:
    """Kill ranks or machines at instants uniform in an iteration.

    Args:
        out: folder of the run.
        ranks: one a machine.
        scale: the job.
        kind: "rank" or "machine".
        failures: how many.
        seed: of targets and instants.
        way: how it recovers.
    """
    rng = random.Random(seed)
    outages: list[Outage] = []
    standbys = failures if way.with_standbys else 0
    options = ("--lease", f"{way.lease_s}s", "--standby", str(standbys))
    if way.warm_spares:
        options = (*options, "--warm-spares")
    job = (*scale.job, "--in-place") if way.in_place else scale.job
    with castor(out, ranks, job, *options) as run:
        run.wait(lambda: run.ended(_WARM_UP), "the first iterations", START_LIMIT_S)
        iteration_s = iteration_s_of(run.logs())
        if way.warm_spares:
            run.wait(run.spares_stand, "spares", START_LIMIT_S)
        for _ in range(failures):
            time.sleep(rng.uniform(0, iteration_s))
            failure_ns = run.strike(f"{kind}:{rng.randrange(ranks)}")
            outage = _wait_for_outage(run, failure_ns)
            outages.append(outage)
            # Redundancy is back before the first checkpoint of a generation is made.
            run.wait(lambda: run.ended(outages[-1].reached + 3), "iterations after", START_LIMIT_S)
            if way.warm_spares:
                run.wait(run.spares_stand, "a spare after the one that was taken", START_LIMIT_S)
        entries, started_ns = run.entries(), run.started_ns
        repeated = _losses_agree(run.logs())
    found_by = "a standby" if way.with_standbys else f"lease {way.lease_s:g} s"
    how = ", in place" * way.in_place + " with a warm spare" * way.warm_spares
    return SystemResult(
        name=f"Castor, {'trainer' if kind == 'rank' else f'machine, {found_by},'} killed{how}",
        interval=1,
        iteration_s=iteration_s,
        checkpoint_s=Spread.of([seconds for seconds, _ in checkpoints(entries)]),
        retrieval_s=Spread.of(
            [_load_s(entries, o, started_ns) + _fetch_s(entries, o, started_ns) for o in outages]
        ),
        outages=tuple(outages),
        detection_s=tuple(_detections(entries, kind, [o.failure_ns - started_ns for o in outages])),
        parts=_parts(run),
        losses_agree=repeated,
    )


def _detections(entries: list[Entry[Event]], kind: str, failures_ns: list[int]) -> list[float]:
    wanted = "software" if kind == "rank" else "hardware"
    detected = [
        entry.time_ns for entry in entries_of(entries, Detected) if entry.event.failure == wanted
    ]
    return [min(d for d in detected if d > at) / 1e9 - at / 1e9 for at in failures_ns]


def _load_s(entries: list[Entry[Event]], outage: Outage, started_ns: int) -> float:
    """Return how long the slowest rank took to load, from when it could have begun to.

    By its own word: what the program sees of it is none where it goes on in place, and as long as
    its spare has stood.
    """
    begin = outage.failure_ns - started_ns
    end = begin + int(outage.new_s * 1e9)
    return max(
        (entry.event.wait or 0.0) + entry.event.loading_s
        for entry in entries_of(entries, Resumed)
        if begin < entry.time_ns < end
    )


def _fetch_s(entries: list[Entry[Event]], outage: Outage, started_ns: int) -> float:
    """Return how long the slowest fetch of a rank's own part from a peer took, 0 without one."""
    begin = outage.failure_ns - started_ns
    end = begin + int(outage.new_s * 1e9)
    return max(
        (
            entry.event.seconds or 0.0
            for entry in entries_of(entries, Retrieved)
            if entry.event.own and begin < entry.time_ns < end
        ),
        default=0.0,
    )


def _parts(run: CastorRun) -> dict[str, Spread]:
    result = json.loads(run.folder.result_file.read_text(encoding="utf-8"))
    found: dict[str, list[float]] = {}
    for recovery in result["recoveries"]:
        for name, seconds in recovery["seconds"].items():
            if seconds is not None:
                found.setdefault(name, []).append(seconds)
    return {name: Spread.of(values) for name, values in found.items()}


# ---- DeepSpeed's own checkpoints ---------------------------------------------------------------


def strawman_interval(checkpoint_s: float, iteration_s: float) -> int:
    """Return the paper's 3 h in iterations, as long beside a checkpoint as there."""
    scaled_s = STRAWMAN_INTERVAL_S * checkpoint_s / PAPER_CHECKPOINT_S
    return max(1, round(scaled_s / iteration_s))


def highfreq_interval(checkpoint_s: float, iteration_s: float) -> int:
    """Return HighFreq's interval: as often as checkpoints can be made."""
    return highfreq_interval_iterations(checkpoint_s, iteration_s)


def storage_outages(
    out: Path,
    ranks: int,
    scale: Scale,
    name: str,
    interval: int,
    failures: int,
    seed: int,
    *,
    warm: bool,
) -> SystemResult:
    """Kill ranks at instants uniform between the completions of two checkpoints.

    The instants are stratified: one in each of `failures` equal parts of the interval, in order.
    Each is counted from where training began or resumed, which is where a checkpoint was begun.
    """
    rng = random.Random(seed)
    start: Callable[[Path, int, str, Sequence[str]], SystemRun] = warm_start if warm else torchrun
    job = [*scale.job, *storage_options(interval, scale.storage_bytes_per_s)]
    outages: list[Outage] = []
    with start(out, ranks, "deepspeed", job) as run:
        run.wait(lambda: run.ended(2), "the first iterations", START_LIMIT_S)
        run.wait(lambda: all(of_kind(r, "saved") for r in run.logs()), "a save", START_LIMIT_S)
        run.wait(lambda: run.ended(_WARM_UP), "the first iterations", START_LIMIT_S)
        iteration_s = iteration_s_of(run.logs())
        checkpoint_s = _save_s(run.logs())[0]
        begun_ns = next(r["time_ns"] for r in of_kind(run.logs()[0], "iteration_ended"))
        period_s = interval * iteration_s
        for k in range(failures):
            instant_s = checkpoint_s + (k + rng.random()) / failures * period_s
            now_s = (time.time_ns() - begun_ns) / 1e9
            # What was lost is being done again meanwhile, as much as the instant before it was in.
            while instant_s < now_s:
                instant_s += period_s
            time.sleep(instant_s - now_s)
            failure_ns = run.kill_rank(rng.randrange(ranks))
            outage = _wait_for_outage(run, failure_ns, period_s)
            outages.append(outage)
            begun_ns = failure_ns + int(outage.loaded_s * 1e9)
        logs = run.logs()
    return SystemResult(
        name=name,
        interval=interval,
        iteration_s=iteration_s,
        checkpoint_s=Spread.of(_save_s(logs)),
        retrieval_s=Spread.of([outage.retrieval_s for outage in outages]),
        outages=tuple(outages),
        losses_agree=_losses_agree(logs),
    )


def _save_s(logs: list[list[Record]]) -> list[float]:
    """Return how long each checkpoint took until all ranks had it in storage."""
    seconds: dict[tuple[int, int], list[float]] = {}
    for records in logs:
        lives = sorted({life_of(record) for record in records}, key=_order_of(records))
        for record in of_kind(records, "saved"):
            key = (lives.index(life_of(record)), record["iteration"])
            seconds.setdefault(key, []).append(record["seconds"])
    return [max(found) for found in seconds.values() if len(found) == len(logs)]


def _order_of(records: list[Record]) -> Callable[[tuple[int, int]], int]:
    first = {}
    for number, record in enumerate(records):
        first.setdefault(life_of(record), number)
    return first.__getitem__


# ---- both --------------------------------------------------------------------------------------


def _wait_for_outage(run: SystemRun, failure_ns: int, redo_s: float = 0.0) -> Outage:
    run.wait(
        lambda: find_outage(run.logs(), failure_ns) is not None,
        "a new iteration after the failure",
        _OUTAGE_LIMIT_S + 3 * redo_s,
    )
    outage = find_outage(run.logs(), failure_ns)
    assert outage is not None, "it was there a moment ago"
    return outage


def iteration_s_of(logs: list[list[Record]]) -> float:
    """Return rank 0's median iteration after the first three."""
    return median(r["seconds"] for r in of_kind(logs[0], "iteration_ended")[3:])


def _losses_agree(logs: list[list[Record]]) -> bool:
    """Say whether every iteration that a rank did twice gave the same loss, bit for bit."""
    for records in logs:
        losses: dict[int, set[float]] = {}
        for record in of_kind(records, "iteration_ended"):
            losses.setdefault(record["iteration"], set()).add(record["loss"])
        if any(len(found) > 1 for found in losses.values()):
            return False
    return True

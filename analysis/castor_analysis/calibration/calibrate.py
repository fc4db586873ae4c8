"""Calibrate the iteration simulator: from measured runs of one setting to a profile.

Few parameters come from a run: the steps of its main thread, the links' alpha and B, what a
collective costs by its bytes, and what a checkpoint costs beside its transfers. All else that a
prediction says is simulated.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from castor_analysis.calibration.fit import CollectivesFit, busy_periods, fit_collectives
from castor_analysis.calibration.runs import (
    CalibrationRun,
    Timeline,
    read_calibration_run,
    typical_timeline,
)
from castor_analysis.compare.settings import model_names, refuse_twice
from castor_configs.errors import InputError
from castor_configs.readable import format_bps
from castor_policy.chunk_schedule import Link
from castor_policy.interleaving import NONE
from castor_records.run_files import RunFiles
from castor_sim.iteration.engine import run_iteration
from castor_sim.iteration.measured import FORMAT, MeasuredProfile
from castor_sim.iteration.measured_steps import Compute, Issue, Step, Wait, step_line

_NS_PER_S: Final = 1e9
_JITTER_MAX: Final = 0.5
_FRAMING: Final = 1.05
"""Bytes on a link for each byte that TCP carries: headers of full packets, and acknowledgements of
what comes the other way. Counted on the links of an emulated cluster; docs/iteration.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A profile, and how well it says what was measured.

    Attributes:
        profile: for the simulator.
        fit: of the collectives.
        runs: names of the folders it was fitted on.
        iteration_s: (measured, simulated) time of an iteration without checkpoints; the first is
            None where no run was without them.
        iterations: how many were measured.
        stated: parameters that no run says, with the reason of their value.
    """

    profile: MeasuredProfile
    fit: CollectivesFit
    runs: tuple[str, ...]
    iteration_s: tuple[float | None, float]
    iterations: int
    stated: Mapping[str, str]


def calibrate(folders: Sequence[RunFiles], *, shard_bytes: int = 0) -> Calibration:
    """Return the profile of runs that were made in one setting.

    The iteration comes from runs without checkpoints (scheme "none") where there are any; what a
    checkpoint costs beside its transfers comes from runs with them. So a run of each may be given,
    which differ in the scheme alone.

    Args:
        folders: of the runs; several are repetitions.
        shard_bytes: what travels of one rank's checkpoint; 0: as the runs say.

    Raises:
        InputError: a folder holds no such run, or the runs were made in different settings.
    """
    if not folders:
        raise InputError("expected one run or more", key="RUN")
    refuse_twice([folder.path for folder in folders])
    runs = [read_calibration_run(folder) for folder in folders]
    _check_alike(runs)
    plain = [run for run in runs if not run.takes_checkpoints] or runs
    try:
        timeline = typical_timeline([one for run in plain for one in run.timelines])
    except ValueError as error:
        raise InputError(
            f"the runs did not do the same: {error}", file=plain[0].folder.events_file
        ) from error
    setting = plain[0].setting
    links = [run.link for run in runs if run.link is not None]
    if not links:
        raise InputError(
            "says nothing of the links (no link_measured): train with this version of Castor",
            file=runs[0].folder.events_file,
        )
    alpha_ns = round(statistics.median(link.alpha_ns for link in links))
    bandwidth_bps = round(statistics.median(link.bandwidth_bps for link in links))
    periods = [
        period
        for run in plain
        for period in busy_periods(typical_timeline(run.timelines).collectives)
    ]
    # A nominal rate is known to the bit; what was measured of it is not.
    wire_bps = round(setting.link_bps / _FRAMING) or bandwidth_bps
    fit = fit_collectives(periods, wire_bps, setting.nodes * setting.ranks_per_node)
    steps = steps_of(timeline)
    stated: dict[str, str] = {}
    copy_link = next((run.copy_link for run in runs if run.copy_link is not None), None)
    figures: dict[str, Any] = {
        "format": FORMAT,
        "name": _name(plain[0]),
        "source": "; ".join(_source(run) for run in runs),
        "compute": plain[0].compute,
        "machines": setting.nodes,
        "gpus": setting.ranks_per_node,
        "replicas": setting.replicas,
        "shard": shard_bytes or _shard_bytes(runs),
        "link": setting.link_bps or "",
        "update": _seconds(timeline.update_ns),
        "jitter": jitter_of(timeline.deviation, steps),
        "capture": _seconds(_capture_ns(runs, stated)),
        "update_traffic": _seconds(_update_traffic_ns(plain, timeline)),
        # Two messages and an all-reduce, which cost their alpha. Measured ones say less: where a
        # checkpoint ends early, its commit waits in a queue behind training traffic, at no cost.
        "commit": _seconds(2 * alpha_ns + fit.alpha_ns),
        "late": _seconds(_late_ns(runs, Link(alpha_ns, bandwidth_bps), stated)),
        "network": {
            "alpha": _seconds(alpha_ns),
            "bandwidth": bandwidth_bps,
        },
        "collectives": {
            "alpha": _seconds(fit.alpha_ns),
            "bandwidth": fit.bandwidth_bps,
            "wire_share": {name: one.wire_share for name, one in sorted(fit.operations.items())},
        },
        "steps": [step_line(step) for step in steps],
    }
    if copy_link is not None:
        # What is copied while the main thread hands over is no capture: it has a hop of its own.
        figures["capture"] = "0s"
        figures["copy"] = {
            "alpha": _seconds(copy_link.alpha_ns),
            "bandwidth": copy_link.bandwidth_bps,
        }
    profile = MeasuredProfile.model_validate(figures)
    took = [second for run in plain if not run.takes_checkpoints for second in run.iterations_s]
    return Calibration(
        profile=profile,
        fit=fit,
        runs=tuple(run.folder.path.name for run in runs),
        iteration_s=(
            statistics.median(took) if took else None,
            run_iteration(profile.tasks()).end_ns / _NS_PER_S,
        ),
        iterations=len(took),
        stated=stated,
    )


def steps_of(timeline: Timeline) -> list[Step]:
    """Return what the main thread did, so that the simulator runs it in the measured time.

    A collective takes the time from when the network was free for it; the thread computes from
    the end of what it last waited for to the next thing that it did.
    """
    moments: list[tuple[int, int, int]] = []
    issued_ns = 0
    for number, one in enumerate(timeline.collectives):
        # Medians of their own may swap two events that come close together.
        issued_ns = max(issued_ns, one.issued_ns)
        moments.append((issued_ns, 0, number))
        if one.waited_ns >= 0:
            moments.append((max(issued_ns, one.waited_ns), 1, number))
    steps: list[Step] = []
    now_ns = free_ns = 0  # what the simulator's thread and network will have come to
    ends_ns: dict[int, int] = {}

    def compute_until(moment_ns: int) -> None:
        nonlocal now_ns
        if moment_ns > now_ns:
            steps.append(Compute(moment_ns - now_ns))
            now_ns = moment_ns

    for moment_ns, is_wait, number in sorted(moments):
        if moment_ns >= timeline.before_update_ns:
            break  # belongs to the update
        compute_until(moment_ns)
        if is_wait:
            steps.append(Wait(number))
            now_ns = max(now_ns, ends_ns[number])
            continue
        one = timeline.collectives[number]
        ended_ns = min(one.ended_ns, one.resumed_ns) if one.resumed_ns >= 0 else one.ended_ns
        start_ns = max(now_ns, free_ns)
        duration_ns = max(0, ended_ns - start_ns)
        free_ns = ends_ns[number] = start_ns + duration_ns
        steps.append(Issue(one.operation, one.size_bytes, duration_ns))
    compute_until(timeline.before_update_ns)
    return steps


def jitter_of(deviation: float, steps: Sequence[Step]) -> float:
    """Return each computation's deviation, of which all together have `deviation`.

    The simulator draws every computation for itself, so that a sum of many varies less than each:
    by the root of the sum of their squares over their sum.
    """
    durations = [step.duration_ns for step in steps if isinstance(step, Compute)]
    root = math.sqrt(sum(duration**2 for duration in durations))
    if root == 0:
        return 0.0
    return round(min(_JITTER_MAX, deviation * sum(durations) / root), 6)


def _check_alike(runs: Sequence[CalibrationRun]) -> None:
    """Refuse runs of different settings; the scheme and what only a scheme has may differ."""
    first = asdict(_without_scheme(runs[0]))
    for run in runs[1:]:
        for key, value in asdict(_without_scheme(run)).items():
            if value != first[key]:
                raise InputError(
                    f"has {key} {_shown(value)}, and {runs[0].folder.path.name} has "
                    f"{_shown(first[key])}: give repetitions of one setting",
                    file=run.folder.path,
                )
        if run.compute != runs[0].compute:
            raise InputError(
                f"computed {run.compute}, and {runs[0].folder.path.name} {runs[0].compute}: give "
                "repetitions of one setting",
                file=run.folder.path,
            )


def _without_scheme(run: CalibrationRun) -> Any:
    return replace(
        run.setting,
        scheme=NONE,
        mu=1.0,
        buffer_bytes=0,
        sub_buffers=1,
        shortest_span_s=0.0,
        paced_copy_bps=0,
    )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(" ".join(pair) for pair in value) or "nothing"
    return str(value)


def _name(run: CalibrationRun) -> str:
    setting = run.setting
    at = f", {format_bps(setting.link_bps)}" if setting.link_bps else ""
    model = model_names([setting])[setting.model]
    return f"{model} on {setting.nodes} machines{at}"[:100]


def _source(run: CalibrationRun) -> str:
    """Name a run, also by its job: by that `castor compare` knows what a profile has seen."""
    job = run.folder.result().job
    return f"{run.folder.path.name} (job {job})" if job else run.folder.path.name


def _shard_bytes(runs: Sequence[CalibrationRun]) -> int:
    found = max(run.shard_bytes for run in runs)
    if found == 0:
        raise InputError(
            "does not say how much of a checkpoint travels: give a run of this setting with a "
            "scheme too (castor train --scheme pipelined); castor calibrate also takes --shard",
            file=runs[0].folder.events_file,
        )
    return found


def _typical_ns(seconds: Sequence[float]) -> int | None:
    return max(0, round(statistics.median(seconds) * _NS_PER_S)) if seconds else None


def _capture_ns(runs: Sequence[CalibrationRun], stated: dict[str, str]) -> int:
    found_ns = _typical_ns([second for run in runs for second in run.captures_s])
    if found_ns is None:
        stated["capture"] = "0: no run given has a checkpoint that followed a schedule"
    return found_ns or 0


def _update_traffic_ns(runs: Sequence[CalibrationRun], timeline: Timeline) -> int:
    """Return the time in which collectives are under way beyond those before the update."""
    all_ns = _typical_ns([second for run in runs for second in run.train_busy_s])
    if all_ns is None:
        return 0
    before_ns = sum(
        period.end_ns - period.start_ns for period in busy_periods(timeline.collectives)
    )
    return min(timeline.update_ns, max(0, all_ns - before_ns))


def _late_ns(runs: Sequence[CalibrationRun], link: Link, stated: dict[str, str]) -> int:
    """Return what a span's chunks took beyond their transfers, on average over the spans."""
    found = []
    for run in runs:
        measured_ns = _typical_ns(run.networks_s)
        if measured_ns is None or run.chunks is None or run.setting.scheme == "blocking":
            continue  # all of which is sent at once, when no rank has anything else to do
        alone_ns = sum(map(link.transfer_ns, run.chunks.sizes_bytes))
        found.append(max(0, measured_ns - alone_ns) / run.chunks.spans)
    if not found:
        stated["late"] = "0: no run given has a checkpoint that was sent in idle spans"
        return 0
    return round(statistics.median(found))


def _seconds(duration_ns: int) -> str:
    return f"{duration_ns}ns"

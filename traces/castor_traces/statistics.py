"""What a failure trace says: rates, groups that fail together, repairs, and their regularity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

import numpy as np

from castor_traces.domains import domains_of
from castor_traces.downtime import machines_down
from castor_traces.joint import WITHIN_NS, chance_of_a_hit, joint_groups, machines_of
from castor_traces.trace import NS_PER_S, Trace
from castor_traces.weibull import WeibullFit, fit_weibull

_DAY_S: Final = 86_400.0
_LISTED: Final = 10
_Name = TypeVar("_Name", int, str)

_INTERARRIVAL_NOTE: Final = (
    "of the whole cluster, between distinct instants: failures of one instant count once"
)


@dataclass(frozen=True, slots=True)
class RepairStatistics:
    """Repair times in seconds, over the failures whose duration is known; None without any."""

    median: float | None
    mean: float | None
    known: int
    unknown: int


@dataclass(frozen=True, slots=True)
class InterarrivalStatistics:
    """Gaps in seconds between the distinct instants at which something fails in the cluster.

    A gap of zero has no Weibull likelihood, so that failures of one instant count once; how many
    there are is told by `TraceStatistics.simultaneous_groups`.

    Attributes:
        gaps: how many gaps there are.
        weibull_shape: maximum-likelihood shape; None for fewer than two gaps or all alike.
        ci95_low: low end of the shape's 95 % confidence interval (see `fit_weibull`).
        ci95_high: its high end.
        weibull_scale_s: the scale in seconds.
        mean_s: mean gap in seconds; None without a gap.
        cv: standard deviation over mean; 1 for a Poisson process; None below two gaps.
        note: what is counted as a gap.
    """

    gaps: int
    weibull_shape: float | None
    ci95_low: float | None
    ci95_high: float | None
    weibull_scale_s: float | None
    mean_s: float | None
    cv: float | None
    note: str = _INTERARRIVAL_NOTE


@dataclass(frozen=True, slots=True)
class MtbfAtScale:
    """Mean time between failures of a job on `machines` machines, in seconds.

    Attributes:
        machines: the size of the job.
        mtbf_s: from the failure rate per machine alone.
        interruption_mtbf_s: between interruptions of a job on so many random machines of the
            trace, counting machines that fail together as one interruption; None beyond the
            machines of the trace, where nothing tells how failures would coincide.
    """

    machines: int
    mtbf_s: float
    interruption_mtbf_s: float | None


@dataclass(frozen=True, slots=True)
class NamedCount:
    """A name (a machine number, a kind, a cause) and how many failures it has."""

    name: int | str
    failures: int


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """Statistics of a trace. Every number that the trace cannot give is None.

    Attributes:
        name: the name of the trace.
        failures: rows, whether or not the machine was up.
        machines: machines watched.
        machines_that_failed: named machines with a failure at least.
        span_s: seconds watched.
        failures_per_day: of the whole cluster.
        failures_per_machine_day: over all machines watched, up or down.
        mtbf_s: span over failures, in seconds.
        mtbf_at_scale: the same for jobs of other sizes.
        within_s: failures that begin within so many seconds of the first of them are joint.
        simultaneous_groups: for each joint failure of several machines, how many (a machine
            counts once, "any" counts as another); largest first.
        simultaneous_share: the share of all failures that such groups are.
        mean_machines_down: mean over time (see `machines_down`); None if durations are not given.
        max_machines_down: the most at one time; None if durations are not given.
        repair_s: repair times.
        interarrival: gaps between failures.
        most_failing_machines: at most ten, most failures first.
        kinds: failures by kind.
        causes: failures by cause, most first; failures without a cause are left out.
        domains: failure domains that rows name.
        domain_failures: joint failures of several machines all of which are of one domain.
    """

    name: str
    failures: int
    machines: int
    machines_that_failed: int
    span_s: float
    failures_per_day: float | None
    failures_per_machine_day: float | None
    mtbf_s: float | None
    mtbf_at_scale: tuple[MtbfAtScale, ...]
    within_s: float
    simultaneous_groups: tuple[int, ...]
    simultaneous_share: float | None
    mean_machines_down: float | None
    max_machines_down: int | None
    repair_s: RepairStatistics
    interarrival: InterarrivalStatistics
    most_failing_machines: tuple[NamedCount, ...]
    kinds: tuple[NamedCount, ...]
    causes: tuple[NamedCount, ...]
    domains: int
    domain_failures: int

    def to_json(self) -> dict[str, object]:
        """Return plain lists, dictionaries and numbers: what `castor trace stats --json` prints."""
        result: dict[str, object] = asdict(self)
        for key in ("most_failing_machines", "kinds", "causes"):
            counts: Sequence[NamedCount] = getattr(self, key)
            result[key] = {str(count.name): count.failures for count in counts}
        return result


def trace_statistics(trace: Trace, within_ns: int = WITHIN_NS) -> TraceStatistics:
    """Compute the statistics of a trace; traces of no, one or two failures give None where due.

    Args:
        trace: any trace.
        within_ns: failures that begin within it are joint (`castor_traces.joint`).
    """
    span_s = trace.span_ns / NS_PER_S
    count = len(trace.failures)
    days = span_s / _DAY_S
    together = list(joint_groups(trace.failures, within_ns))
    sizes = [machines_of(group) for group in together]
    groups = sorted((size for size in sizes if size > 1), reverse=True)
    failing = Counter(f.machine for f in trace.failures if f.machine is not None)
    repairs = _repair_statistics(trace)
    down = machines_down(trace) if repairs.known or not count else None
    return TraceStatistics(
        name=trace.name,
        failures=count,
        machines=trace.machines,
        machines_that_failed=len(failing),
        span_s=span_s,
        failures_per_day=count / days if days else None,
        failures_per_machine_day=count / days / trace.machines if days else None,
        mtbf_s=span_s / count if count and days else None,
        mtbf_at_scale=_mtbf_at_scale(trace, sizes),
        within_s=within_ns / NS_PER_S,
        simultaneous_groups=tuple(groups),
        simultaneous_share=sum(groups) / count if count else None,
        mean_machines_down=down.mean if down else None,
        max_machines_down=down.maximum if down else None,
        repair_s=repairs,
        interarrival=interarrival_statistics(trace),
        most_failing_machines=_most(failing)[:_LISTED],
        kinds=_most(Counter[str](failure.kind for failure in trace.failures)),
        causes=_most(Counter(failure.cause for failure in trace.failures if failure.cause)),
        domains=len(set(domains_of(trace) or ()) - {""}),
        domain_failures=sum(
            len({failure.domain for failure in group}) == 1 and bool(group[0].domain)
            for group, size in zip(together, sizes, strict=True)
            if size > 1
        ),
    )


def interarrival_gaps_s(trace: Trace) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the gaps in seconds between the distinct instants of failure in the cluster."""
    instants = np.array(sorted({failure.time_ns for failure in trace.failures}), dtype=np.int64)
    return np.diff(instants).astype(np.float64) / NS_PER_S


def interarrival_statistics(trace: Trace) -> InterarrivalStatistics:
    """Fit the gaps between distinct instants of failure (see `InterarrivalStatistics`)."""
    gaps_s = interarrival_gaps_s(trace)
    fit: WeibullFit | None = fit_weibull(gaps_s)
    mean_s = float(gaps_s.mean()) if gaps_s.size else None
    spread = float(gaps_s.std(ddof=1)) if gaps_s.size > 1 else None
    return InterarrivalStatistics(
        gaps=int(gaps_s.size),
        weibull_shape=fit.shape if fit else None,
        ci95_low=fit.ci95_low if fit else None,
        ci95_high=fit.ci95_high if fit else None,
        weibull_scale_s=fit.scale_s if fit else None,
        mean_s=mean_s,
        cv=spread / mean_s if spread is not None and mean_s else None,
    )


def _repair_statistics(trace: Trace) -> RepairStatistics:
    known = [f.duration_ns for f in trace.failures if f.duration_ns is not None]
    seconds = np.array(known, dtype=np.float64) / NS_PER_S
    return RepairStatistics(
        median=float(np.median(seconds)) if known else None,
        mean=float(seconds.mean()) if known else None,
        known=len(known),
        unknown=len(trace.failures) - len(known),
    )


def _most(counts: Mapping[_Name, int]) -> tuple[NamedCount, ...]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(NamedCount(name, failures) for name, failures in ordered)


def _mtbf_at_scale(trace: Trace, sizes: Sequence[int]) -> tuple[MtbfAtScale, ...]:
    """Tabulate 1, 8, 64, ... machines up to 32,768, and the trace's own number."""
    if not trace.failures or trace.span_ns == 0:
        return ()
    machine_seconds = trace.span_ns / NS_PER_S * trace.machines
    by_size = sorted(Counter(sizes).items())
    table = []
    for machines in sorted({8**power for power in range(6)} | {trace.machines}):
        interruptions = None
        if machines <= trace.machines:
            expected = sum(
                instants * chance_of_a_hit(trace.machines, size, machines)
                for size, instants in by_size
            )
            interruptions = trace.span_ns / NS_PER_S / expected
        table.append(
            MtbfAtScale(
                machines=machines,
                mtbf_s=machine_seconds / (len(trace.failures) * machines),
                interruption_mtbf_s=interruptions,
            )
        )
    return tuple(table)

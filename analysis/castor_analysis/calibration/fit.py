"""What a collective costs: a start-up time, and its bytes' share that passes the link.

Collectives that are under way together share the network, so that not one of them but their busy
period is measured well. The fit is a least-squares one over busy periods:

    time of a period = sum over its collectives of (alpha + bytes * wire_share / bandwidth)

A ring sends a known share of the bytes (R - 1 of R parts to gather, twice that to reduce for all
ranks, which is also how gloo reduces and scatters). Where what is fitted comes close to it, or
where an operation has too few bytes to tell, the known share is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from scipy.optimize import nnls

from castor_analysis.calibration.runs import Collective
from castor_policy.chunk_schedule import BITS_NS

_NEAR: Final = 0.15
"""A fitted share this near to a ring's is the ring's."""
_FEW: Final = 0.01
"""An operation whose bytes take less of all time than this has too few of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyPeriod:
    """Collectives that were under way without a break.

    Attributes:
        collectives: in the order of issue.
        start_ns, end_ns: of the first and the last moment.
    """

    collectives: tuple[Collective, ...]
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFit:
    """One operation of `CollectivesFit`.

    Attributes:
        wire_share: share of its bytes that passes a link.
        is_known: whether that is a ring's share, and not fitted.
        count, size_bytes: how many there were, and all their bytes.
        measured_ns, fitted_ns: their time, where busy periods are shared by what the fit says.
    """

    wire_share: float
    is_known: bool
    count: int
    size_bytes: int
    measured_ns: int
    fitted_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectivesFit:
    """What collectives cost.

    Attributes:
        alpha_ns: of each.
        bandwidth_bps: what the shares are of.
        operations: by name.
        error: root mean square of the periods' residuals over their mean.
    """

    alpha_ns: int
    bandwidth_bps: int
    operations: Mapping[str, OperationFit]
    error: float

    def cost_ns(self, operation: str, size_bytes: int) -> float:
        """Return what a collective costs by this fit."""
        return self.alpha_ns + self.wire_ns(operation, size_bytes)

    def wire_ns(self, operation: str, size_bytes: int) -> float:
        """Return the part of it that its bytes take on the link."""
        share = self.operations[operation].wire_share
        return size_bytes * share * BITS_NS / self.bandwidth_bps


def ring_share(operation: str, ranks: int) -> float | None:
    """Return the share of a collective's bytes that each rank sends in a ring; None: no ring."""
    once = (ranks - 1) / ranks
    if "all_gather" in operation:
        return once
    if "all_reduce" in operation or "reduce_scatter" in operation:
        return 2 * once
    return None


def busy_periods(collectives: Sequence[Collective]) -> list[BusyPeriod]:
    """Return the periods in which a collective was under way, in order of time."""
    periods: list[BusyPeriod] = []
    under_way: list[Collective] = []
    end_ns = 0
    for collective in sorted(collectives, key=lambda one: one.issued_ns):
        if under_way and collective.issued_ns > end_ns:
            periods.append(_period(under_way, end_ns))
            under_way = []
        end_ns = max(end_ns, collective.ended_ns) if under_way else collective.ended_ns
        under_way.append(collective)
    if under_way:
        periods.append(_period(under_way, end_ns))
    return periods


def fit_collectives(
    periods: Sequence[BusyPeriod], bandwidth_bps: int, ranks: int
) -> CollectivesFit:
    """Fit the cost of collectives to busy periods.

    Args:
        periods: of one iteration or of several.
        bandwidth_bps: of the links, B.
        ranks: that take part.

    Raises:
        ValueError: the bandwidth is none.
    """
    if bandwidth_bps <= 0:
        raise ValueError(f"bandwidth_bps is {bandwidth_bps}: give more than 0")
    names = sorted({one.operation for period in periods for one in period.collectives})
    times = np.array([period.end_ns - period.start_ns for period in periods], dtype=float)
    counts = np.array([len(period.collectives) for period in periods], dtype=float)
    wire = np.array(
        [
            [
                sum(one.size_bytes for one in period.collectives if one.operation == name)
                * BITS_NS
                / bandwidth_bps
                for name in names
            ]
            for period in periods
        ]
    ).reshape(len(periods), len(names))
    alpha, shares = _solve(times, counts, wire)
    all_wire = dict(zip(names, wire.sum(axis=0), strict=True))
    known = {}
    for name, share in zip(names, shares, strict=True):
        ring = ring_share(name, ranks)
        few = ring is not None and ring * float(all_wire[name]) < _FEW * float(times.sum())
        if ring is not None and (few or abs(share - ring) <= _NEAR * ring):
            known[name] = ring
    if known:
        of_known = np.array([known.get(name, 0.0) for name in names])
        free = [index for index, name in enumerate(names) if name not in known]
        alpha, rest = _solve(times - wire @ of_known, counts, wire[:, free])
        shares = of_known
        shares[free] = rest
    residuals = times - counts * alpha - wire @ shares
    spread = float(np.sqrt(np.mean(residuals**2))) if len(times) else 0.0
    without = CollectivesFit(
        alpha_ns=round(alpha),
        bandwidth_bps=bandwidth_bps,
        operations={
            name: OperationFit(
                wire_share=round(float(share), 6),
                is_known=name in known,
                count=0,
                size_bytes=0,
                measured_ns=0,
                fitted_ns=0,
            )
            for name, share in zip(names, shares, strict=True)
        },
        error=spread / float(times.mean()) if len(times) and times.mean() else 0.0,
    )
    return _with_sums(without, periods)


def shared_times(fit: CollectivesFit, period: BusyPeriod) -> list[int]:
    """Return how long each collective of a period took alone: the period, shared by the fit."""
    costs = [fit.cost_ns(one.operation, one.size_bytes) for one in period.collectives]
    if not any(costs):
        costs = [1.0] * len(costs)
    ends = np.cumsum(costs) / sum(costs) * (period.end_ns - period.start_ns)
    marks = [0, *(round(float(end)) for end in ends)]
    return [end - start for start, end in pairwise(marks)]


def _period(under_way: Sequence[Collective], end_ns: int) -> BusyPeriod:
    return BusyPeriod(collectives=tuple(under_way), start_ns=under_way[0].issued_ns, end_ns=end_ns)


def _solve(
    times: np.ndarray[tuple[int], np.dtype[np.float64]],
    counts: np.ndarray[tuple[int], np.dtype[np.float64]],
    wire: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> tuple[float, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return alpha and a share for each column of `wire`, none below 0."""
    if not len(times):
        return 0.0, np.zeros(wire.shape[1])
    # Nanoseconds beside shares would be lost in rounding: alpha is fitted in milliseconds.
    found, _ = nnls(np.column_stack([counts * 1e6, wire]), times)
    return float(found[0]) * 1e6, np.asarray(found[1:], dtype=np.float64)


def _with_sums(fit: CollectivesFit, periods: Sequence[BusyPeriod]) -> CollectivesFit:
    rows = [
        (one, took_ns)
        for period in periods
        for one, took_ns in zip(period.collectives, shared_times(fit, period), strict=True)
    ]
    operations = {}
    for name, operation in fit.operations.items():
        own = [(one, took_ns) for one, took_ns in rows if one.operation == name]
        operations[name] = OperationFit(
            wire_share=operation.wire_share,
            is_known=operation.is_known,
            count=len(own),
            size_bytes=sum(one.size_bytes for one, _ in own),
            measured_ns=sum(took_ns for _, took_ns in own),
            fitted_ns=round(sum(fit.cost_ns(name, one.size_bytes) for one, _ in own)),
        )
    return CollectivesFit(
        alpha_ns=fit.alpha_ns,
        bandwidth_bps=fit.bandwidth_bps,
        operations=operations,
        error=fit.error,
    )

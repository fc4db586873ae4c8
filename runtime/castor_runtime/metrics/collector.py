"""Reads an agent's counts and readings when it is scraped, and nothing before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, product
from typing import Final, TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from castor_policy.agents.job_spec import JobSpec
from castor_policy.recovery import Tier
from castor_records.phases import MEASURED
from castor_runtime.arena import SHARED_MEMORY
from castor_runtime.arena.budget import available_bytes
from castor_runtime.metrics.families import (
    COMMON_LABELS,
    COUNTER,
    FAMILIES,
    GAUGE,
    HISTOGRAM,
    Family,
)
from castor_runtime.metrics.outage_clock import HARDWARE, SOFTWARE
from castor_runtime.metrics.readings import Readings
from castor_runtime.metrics.tally import (
    BUCKETS_S,
    COMPLETE,
    FAILURE,
    LEFT_OUT,
    NOT_WRITTEN,
    REDONE,
    STALL,
    WRITTEN,
    Counts,
    Tally,
)

AnyMetric: TypeAlias = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_KINDS: Final[Mapping[str, type[AnyMetric]]] = {
    COUNTER: CounterMetricFamily,
    GAUGE: GaugeMetricFamily,
    HISTOGRAM: HistogramMetricFamily,
}

Samples: TypeAlias = Mapping[tuple[str, ...], float]
"""Values of a metric by its own labels' values."""


class AgentCollector(Collector):
    """The metrics of one agent.

    Args:
        spec: its job.
        agent: its name.
        tally: what it counts.
        readings: returns the newest reading.
    """

    def __init__(
        self, spec: JobSpec, agent: str, tally: Tally, readings: Callable[[], Readings]
    ) -> None:
        self._spec = spec
        self._common = (spec.job, agent)
        self._tally = tally
        self._readings = readings

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without reading anything."""
        return [_family(family) for family in FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that has a value now."""
        now_s = time.monotonic()
        counts, seen = self._tally.read(now_s), self._readings()
        values = self._gauges(counts, seen, now_s) | self._counters(counts, seen)
        for family in FAMILIES:
            metric = _family(family)
            if isinstance(metric, HistogramMetricFamily):
                metric.add_metric(self._common, _buckets(counts), counts.iteration_s)
            else:
                for labels, value in values.pop(family.name).items():
                    metric.add_metric((*self._common, *labels), value)
            yield metric
        assert not values, f"{sorted(values)} stand in no family"

    def _gauges(self, counts: Counts, seen: Readings, now_s: float) -> dict[str, Samples]:
        plan = seen.plan
        reachable = counts.store_reachable
        who = ("" if seen.machine is None else str(seen.machine), seen.version)
        persistent = seen.report.persistent if seen.report is not None else None
        belong = [] if seen.machine is None else self._spec.ranks_held_by(seen.machine)
        age_s = None if counts.complete_at_s is None else now_s - counts.complete_at_s
        speed = counts.bandwidth_bps / 8 or None
        return {
            "castor_agent_info": {(*who, seen.address, seen.domain): 1},
            "castor_agent_ready": _one(not seen.not_ready(store_reachable=reachable)),
            "castor_agent_root": _one(seen.is_root),
            "castor_agent_loop_age_seconds": _one(now_s - seen.at_s),
            "castor_store_reachable": _one(reachable),
            "castor_generation": _one(0 if plan is None else plan.generation),
            "castor_places_empty": _one(0 if plan is None else plan.agents.count("")),
            "castor_iteration": _one(counts.iteration),
            "castor_slow_rank_seconds": _one(max(counts.slow_s.values(), default=0.0)),
            "castor_checkpoint_iteration": _one(counts.complete),
            "castor_checkpoint_lag_iterations": _one(max(0, counts.iteration - counts.complete)),
            "castor_checkpoint_age_seconds": _one(age_s),
            "castor_link_bandwidth_bytes_per_second": _one(speed),
            "castor_memory_used_bytes": _one(seen.memory_bytes),
            "castor_memory_left_bytes": _one(_left_bytes(seen)),
            "castor_replicas": _one(len(belong)),
            "castor_replicas_missing": _one(len(seen.missing)),
            "castor_outage_seconds": _one(counts.outage_s),
            "castor_effective_training_time_ratio": _one(counts.effective_ratio),
            "castor_persistent_iteration": _one(max(persistent or (), default=0)),
        }

    def _counters(self, counts: Counts, seen: Readings) -> dict[str, Samples]:
        kinds = product((HARDWARE, SOFTWARE), map(str, Tier))
        phases = product((HARDWARE, SOFTWARE), map(str, MEASURED))
        causes = (HARDWARE + FAILURE, SOFTWARE + FAILURE, REDONE, STALL)
        return {
            "castor_iterations_total": _one(counts.iterations),
            "castor_iterations_redone_total": _one(counts.iterations_redone),
            "castor_checkpoints_total": {
                (what,): counts.checkpoints[what] for what in (COMPLETE, LEFT_OUT)
            },
            "castor_checkpoint_seconds_total": _one(counts.checkpoint_s),
            "castor_checkpoint_stall_seconds_total": _one(counts.stall_s),
            "castor_bytes_total": self._bytes(counts, seen.part_bytes),
            "castor_corrupt_parts_total": _one(counts.corrupt),
            "castor_recoveries_total": {key: counts.recoveries[key] for key in kinds},
            "castor_recovery_seconds_total": {
                key: counts.recovery_s.get(key, 0.0) for key in phases
            },
            "castor_lost_seconds_total": {
                (cause,): counts.lost_s.get(cause, 0.0) for cause in causes
            },
            "castor_persists_total": {
                (what,): counts.persists[what] for what in (WRITTEN, NOT_WRITTEN)
            },
            "castor_persist_seconds_total": _one(counts.persist_s),
        }

    def _bytes(self, counts: Counts, part_bytes: Mapping[int, int]) -> Samples:
        def restored(tier: Tier) -> int:
            found = counts.restored.items()
            return sum(n * part_bytes.get(rank, 0) for (rank, of), n in found if of == tier)

        copied = sum(n * part_bytes.get(rank, 0) for rank, n in counts.copied.items())
        own = max((part_bytes.get(rank, 0) for rank in counts.copied), default=0)
        return {
            ("checkpoint", str(Tier.OWN_MEMORY), "memory"): copied,
            ("checkpoint", str(Tier.PEER), "network"): counts.sent_bytes,
            ("checkpoint", str(Tier.STORAGE), "storage"): counts.persisted * own,
            ("recovery", str(Tier.OWN_MEMORY), "memory"): restored(Tier.OWN_MEMORY),
            ("recovery", str(Tier.PEER), "network"): counts.fetched_bytes,
            ("recovery", str(Tier.STORAGE), "storage"): restored(Tier.STORAGE),
        }


def _one(value: float | None) -> Samples:
    """Return the only sample of a metric without labels of its own; none without a value."""
    return {} if value is None else {(): float(value)}


def _family(family: Family) -> AnyMetric:
    labels = [*COMMON_LABELS, *family.labels]
    return _KINDS[family.kind](family.name, family.help, labels=labels)


def _buckets(counts: Counts) -> list[tuple[str, float]]:
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    return list(zip(bounds, accumulate(counts.iteration_buckets), strict=True))


def _left_bytes(seen: Readings) -> int:
    status = os.statvfs(SHARED_MEMORY)
    left = [available_bytes(), status.f_bavail * status.f_frsize]
    if seen.limit_bytes:
        left.append(seen.limit_bytes - seen.memory_bytes)
    return max(0, min(left))

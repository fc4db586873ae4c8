"""Every metric of an agent: name, type, labels and help. docs/watching.md holds the same table.

Names follow Prometheus: base units, `_total` for what only grows. A counter begins at 0 with each
life of an agent. Beside its own labels every series has `training`, the job's name (Prometheus
itself owns the label `job`), and `agent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
COMMON_LABELS: Final = ("training", "agent")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric.

    Attributes:
        name: as it is queried; a counter's ends with `_total`.
        kind: counter, gauge or histogram.
        help: one sentence.
        labels: its own, beside `COMMON_LABELS`.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


FAMILIES: Final = (
    Family(
        "castor_agent_info",
        GAUGE,
        "Who this agent is, always 1; machine is the place that it fills, empty for a standby.",
        ("machine", "version", "address", "domain"),
    ),
    Family("castor_agent_ready", GAUGE, "1 where /readyz answers 200, else 0."),
    Family("castor_agent_root", GAUGE, "1 where this agent decides for the job."),
    Family(
        "castor_agent_loop_age_seconds", GAUGE, "Time since this agent's event loop last turned."
    ),
    Family("castor_store_reachable", GAUGE, "1 where the store answers this agent."),
    Family("castor_generation", GAUGE, "Attempt at running all trainers, by the newest plan."),
    Family("castor_places_empty", GAUGE, "Places of the job that no agent fills, by that plan."),
    Family("castor_iteration", GAUGE, "Newest iteration that ended on this machine."),
    Family("castor_iterations_total", COUNTER, "Iterations that ended here, redone ones too."),
    Family("castor_iterations_redone_total", COUNTER, "Of them, those that had ended here before."),
    Family("castor_iteration_seconds", HISTOGRAM, "Time of an iteration of the first rank here."),
    Family(
        "castor_slow_rank_seconds",
        GAUGE,
        "What all ranks wait in each iteration for the slowest rank here, while it is named.",
    ),
    Family(
        "castor_checkpoint_iteration",
        GAUGE,
        "Newest iteration that is complete in memory on every rank.",
    ),
    Family(
        "castor_checkpoint_lag_iterations",
        GAUGE,
        "Iterations that ended since the newest complete checkpoint: lost if all fails now.",
    ),
    Family(
        "castor_checkpoint_age_seconds",
        GAUGE,
        "Time since the newest checkpoint was complete; absent before the first.",
    ),
    Family(
        "castor_checkpoints_total",
        COUNTER,
        "Checkpoints to memory: complete, or left_out as state changed while it was copied.",
        ("outcome",),
    ),
    Family(
        "castor_checkpoint_seconds_total",
        COUNTER,
        "Time from handing checkpoints over until they were complete on every rank.",
    ),
    Family(
        "castor_checkpoint_stall_seconds_total",
        COUNTER,
        "Time in which training waited for its checkpoints.",
    ),
    Family(
        "castor_bytes_total",
        COUNTER,
        "Bytes of checkpoints written (purpose checkpoint) or loaded and fetched (recovery).",
        ("purpose", "tier", "link"),
    ),
    Family(
        "castor_link_bandwidth_bytes_per_second",
        GAUGE,
        "Measured speed to the machines that hold copies; absent where it is not measured.",
    ),
    Family("castor_memory_used_bytes", GAUGE, "Checkpoint memory that this agent has taken."),
    Family(
        "castor_memory_left_bytes",
        GAUGE,
        "What checkpoints may still take: of the machine, its cgroup, /dev/shm and the limit.",
    ),
    Family("castor_replicas", GAUGE, "Ranks' parts that belong in this machine's memory."),
    Family("castor_replicas_missing", GAUGE, "Of them, those of which no iteration is whole here."),
    Family("castor_corrupt_parts_total", COUNTER, "Parts in memory whose checksum did not hold."),
    Family(
        "castor_recoveries_total",
        COUNTER,
        "Outages of the job that ended while this machine took part, by kind and slowest tier.",
        ("kind", "tier"),
    ),
    Family(
        "castor_recovery_seconds_total",
        COUNTER,
        "Time of those outages by phase, as this machine saw it.",
        ("kind", "phase"),
    ),
    Family("castor_outage_seconds", GAUGE, "For how long training has stood; 0 while it goes on."),
    Family(
        "castor_lost_seconds_total",
        COUNTER,
        "Time that went into no new iteration, by cause.",
        ("cause",),
    ),
    Family(
        "castor_effective_training_time_ratio",
        GAUGE,
        "Share of the time since training began here that went into new iterations.",
    ),
    Family(
        "castor_persistent_iteration",
        GAUGE,
        "Newest iteration that is whole in persistent storage, as this agent sees it; 0: none.",
    ),
    Family(
        "castor_persists_total",
        COUNTER,
        "This machine's shares of persistent checkpoints: written or failed.",
        ("outcome",),
    ),
    Family("castor_persist_seconds_total", COUNTER, "Time that writing those shares took."),
)

BY_NAME: Final = {family.name: family for family in FAMILIES}

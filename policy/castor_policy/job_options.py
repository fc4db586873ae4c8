"""What may be set of a job's behaviour, in groups: each option once, for every room.

The job's document and what a trainer is told have these very groups; a job file has a table for
each, and `castor train` an option for each field. How long which silence is too long is
`membership.WatchLimits`, beside what it decides.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from castor_policy import defaults
from castor_policy.checkpoint_memory import FAST, SAVING
from castor_policy.interleaving import EAGER, NONE
from castor_policy.membership import LIMITS, WatchLimits
from castor_policy.option import OptionError, Options, Unit, option

CPU = "cpu"
NCCL = "nccl"
"""What checkpoints are sent by: see `TrafficOptions.send`."""

WAIT = "wait"
DEGRADED = "degraded"
"""What training does while replicas are missing: see `RecoveryOptions.redundancy`."""


@dataclass(frozen=True, slots=True)
class TrafficOptions(Options):
    """When checkpoints are taken, and how they travel."""

    scheme: str = option(
        EAGER,
        Unit.TEXT,
        "When checkpoint traffic is sent; none: take no checkpoints.",
        names=(NONE, EAGER),
        plugins="schemes",
    )
    checkpoint_every: int = option(
        defaults.CHECKPOINT_EVERY,
        Unit.COUNT,
        "Iterations from one checkpoint in memory to the next.",
        metavar="N",
        least=1,
    )
    send: str = option(
        CPU,
        Unit.TEXT,
        "What sends them from a GPU: cpu (over TCP, from their copy in CPU memory), or nccl (from "
        "the GPU's memory; not proved safe beside training's own collectives).",
        names=(CPU, NCCL),
    )
    mu: float = option(
        defaults.MU, Unit.SHARE, "Share of an idle span that is used.", above=0, most=1
    )
    chunk_bytes: int = option(
        defaults.CHUNK_BYTES,
        Unit.BYTES,
        "Unit of checksums and of transfer.",
        least=4096,
        multiple_of=4096,
    )
    buffer_bytes: int = option(
        0,
        Unit.BYTES,
        "Memory for received chunks; default: a chunk in each sub-buffer.",
        least=1,
        empty=True,
    )
    sub_buffers: int = option(
        defaults.SUB_BUFFERS, Unit.COUNT, "Sub-buffers that the buffer is divided in.", least=1
    )
    shortest_span_s: float = option(
        defaults.SHORTEST_SPAN_S, Unit.SECONDS, "Idle spans below it are left alone.", least=0
    )
    profile_iterations: int = option(
        defaults.PROFILED_ITERATIONS,
        Unit.COUNT,
        "Iterations whose idle spans are averaged before a schedule is made.",
        metavar="N",
        least=1,
    )

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if 0 < self.buffer_bytes < self.sub_buffers:
            raise OptionError(
                "buffer_bytes", f"each of its {self.sub_buffers} sub-buffers holds a byte or more"
            )


@dataclass(frozen=True, slots=True)
class MemoryOptions(Options):
    """What checkpoints may take of a machine's memory."""

    mode: str = option(
        FAST,
        Unit.TEXT,
        "fast: two buffers of each of m replicas, 2m shards a machine; saving: 2m - 1, and updates "
        "wait a little longer for checkpoints.",
        flag="memory",
        names=(FAST, SAVING),
    )
    limit_bytes: int = option(
        0,
        Unit.BYTES,
        "Most memory for checkpoints on a machine; default: what there is.",
        flag="memory-limit",
        least=1,
        empty=True,
    )


@dataclass(frozen=True, slots=True)
class PersistenceOptions(Options):
    """The persistent tier."""

    tiers: tuple[str, ...] = option(
        (),
        Unit.PATH,
        "Folder or URL (s3://BUCKET/PREFIX) for persistent checkpoints; default: there are none. "
        "Give it again for another one: each is written, the first that can be read is read.",
        flag="persist",
        metavar="URL",
        several=True,
    )
    every_s: float = option(
        defaults.PERSIST_EVERY_S,
        Unit.SECONDS,
        "How often a persistent checkpoint is taken.",
        flag="persist-every",
        above=0,
    )
    keep: int = option(
        2, Unit.COUNT, "Persistent checkpoints that are kept.", flag="persist-keep", least=1
    )
    storage_s: float = option(
        600.0,
        Unit.SECONDS,
        "Persistent storage may take so long to be read, where memory cannot serve.",
        flag="storage-patience",
        above=0,
    )


@dataclass(frozen=True, slots=True)
class RecoveryOptions(Options):
    """How a job recovers, and when it does not try again."""

    redundancy: str = option(
        WAIT,
        Unit.TEXT,
        "After a loss the first checkpoint, and with it the update after it, waits until replicas "
        "are made again (wait), or is taken beside that (degraded).",
        names=(WAIT, DEGRADED),
    )
    warm_spares: bool = option(
        False,
        Unit.FLAG,
        "Beside each trainer keep another process, its engine built, that takes its place when it "
        "dies: where the script goes on in place. Takes the memory of another trainer.",
    )
    max_attempts: int = option(
        5,
        Unit.COUNT,
        "Recoveries in a row that complete no iteration before giving up.",
        metavar="N",
        least=1,
    )
    set_aside_after: int = option(
        3,
        Unit.COUNT,
        "Failures of one machine after which a standby takes its place; 0: never.",
        metavar="N",
        least=0,
    )
    set_aside_within_s: float = option(
        3600.0, Unit.SECONDS, "How long a failure counts for setting its machine aside.", above=0
    )
    gather_s: float = option(
        300.0,
        Unit.SECONDS,
        "A machine that does not stop its trainers and say what it holds, or does not take up a "
        "plan, for so long is lost.",
        flag="gather-patience",
        above=0,
    )


@dataclass(frozen=True, slots=True)
class DeviceOptions(Options):
    """What takes checkpoints out of training's memory."""

    maker: str = option(
        "",
        Unit.TEXT,
        "What makes a stand-in for the device; default: the trainers' own.",
        flag="device-maker",
        metavar="MODULE:FUNCTION",
    )
    paced_copy_bps: int = option(
        0,
        Unit.BITS_PER_SECOND,
        "Without a GPU: a stand-in for its copy engine, such as 400mbit.",
        least=1,
        empty=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """All of them; what has a job's options is one.

    Raises:
        OptionError: options of two groups do not go together.
    """

    traffic: TrafficOptions = TrafficOptions()
    limits: WatchLimits = LIMITS
    memory: MemoryOptions = MemoryOptions()
    persistence: PersistenceOptions = PersistenceOptions()
    recovery: RecoveryOptions = RecoveryOptions()
    device: DeviceOptions = DeviceOptions()

    def __post_init__(self) -> None:
        if self.traffic.scheme == NONE and self.persistence.tiers:
            raise OptionError(
                "persistence.tiers",
                "scheme none takes no checkpoint that could be persisted: choose another scheme",
            )

    def groups(self) -> dict[str, Any]:
        """Return the groups by name, for another that is to have the same."""
        return {item.name: getattr(self, item.name) for item in fields(JobOptions)}

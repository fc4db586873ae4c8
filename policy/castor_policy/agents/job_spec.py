"""The job: what it is, written once before any agent acts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from castor_policy import defaults
from castor_policy.agents.documents import Document, int_rows
from castor_policy.membership import LIMITS, WatchLimits

PROTOCOL = 3
"""Goes up when a document changes its meaning; agents of different protocols do not mix."""


_RUN = re.compile(r"[0-9a-f]{16}")


def check_run(run: str) -> None:
    """Raise ValueError unless `run` can be a run's identity."""
    if not _RUN.fullmatch(run):
        raise ValueError(f"a run is known by 16 hex digits, not by {run!r}")


@dataclass(frozen=True, slots=True)
class JobSpec(Document):
    """What a job is; written once, before any agent acts, and never changed.

    Attributes:
        job: its name; everything in the store and in shared memory is named after it.
        machines: N, the machines that train.
        ranks_per_machine: R, trainers on each.
        placement: its name.
        replicas: the placement: `replicas[i]` are the machines that hold shard i, i first.
        script: the training program, a path on every machine.
        arguments: its arguments.
        run: which run of that name, 16 hex digits: random, made by whoever makes the job. Memory,
            messages and processes of another run are never this one's, whatever they are called.
            "": taken from `started_ns`.
        started_ns: CLOCK_REALTIME when the job was made; event logs count from it.
        lease_s, hang_s, stall_factor, stall_s, startup_s: see `WatchLimits`.
        gather_s: a machine that does not stop its trainers and say what it holds, or does not take
            up a plan, for so long is treated as lost.
        storage_s: persistent storage may take so long to be read, where memory cannot serve.
        persist: where persistent checkpoints go; "" for none.
        persist_every_s: seconds between persistent checkpoints.
        persist_keep: how many of them are kept.
        chunk_bytes: size of a checkpoint chunk, the unit of checksums and of transfer.
        checkpoint_every: iterations from one checkpoint in memory to the next (`period`).
        scheme: how checkpoint traffic is scheduled; "none": nothing is checkpointed.
        profile_iterations: iterations whose idle spans are averaged before a schedule is made.
        mu: share of an idle span that checkpoint traffic may use.
        buffer_bytes: R, memory for received chunks; 0: `sub_buffers` chunks.
        sub_buffers: p, sub-buffers that R is divided in.
        shortest_span_s: idle spans below it are left alone.
        device: module:function that makes a stand-in for the device which takes checkpoints out of
            training's memory; "": the trainers' own.
        paced_copy_bps: rate of a stand-in for a GPU's copy engine; 0: there is none.
        memory_limit_bytes: most CPU memory a machine may spend on checkpoints; 0: what there is.
        max_attempts: recoveries in a row that complete no new iteration, after which the job gives
            up.
        set_aside_after: failures of one machine after which a standby takes its place; 0: never.
        set_aside_within_s: how long a failure counts for that.
        resumes: generations that the run has had before `castor resume` began it again: it waits
            for the agents that hold its kept memory rather than begin without them. 0: it is new.
        protocol: `PROTOCOL`.
        credentials: a mark by which an agent knows whether its secret is the job's; "" for none.
        allow_changed_script: agents may come with another script than the first one's.
    """

    job: str
    machines: int
    ranks_per_machine: int
    placement: str
    replicas: tuple[tuple[int, ...], ...]
    script: str
    arguments: tuple[str, ...] = ()
    run: str = ""
    started_ns: int = 0
    lease_s: float = LIMITS.lease_s
    hang_s: float = LIMITS.hang_s
    stall_factor: float = LIMITS.stall_factor
    stall_s: float = LIMITS.stall_s
    startup_s: float = LIMITS.startup_s
    gather_s: float = 300.0
    storage_s: float = 600.0
    persist: str = ""
    persist_every_s: float = defaults.PERSIST_EVERY_S
    persist_keep: int = 2
    chunk_bytes: int = defaults.CHUNK_BYTES
    checkpoint_every: int = defaults.CHECKPOINT_EVERY
    scheme: str = "eager"
    profile_iterations: int = defaults.PROFILED_ITERATIONS
    mu: float = defaults.MU
    buffer_bytes: int = 0
    sub_buffers: int = defaults.SUB_BUFFERS
    shortest_span_s: float = defaults.SHORTEST_SPAN_S
    device: str = ""
    paced_copy_bps: int = 0
    memory_limit_bytes: int = 0
    max_attempts: int = 5
    set_aside_after: int = 3
    set_aside_within_s: float = 3600.0
    resumes: int = 0
    protocol: int = PROTOCOL
    credentials: str = ""
    allow_changed_script: bool = False

    def __post_init__(self) -> None:
        if not self.run:
            # Two jobs are never one by an omission: what was made at another time is another.
            made = f"{self.started_ns % (1 << 64):016x}"
            object.__setattr__(self, "run", made)
        check_run(self.run)

    @classmethod
    def _check_version(cls, record: Mapping[str, Any]) -> None:
        if record.get("protocol") != PROTOCOL:
            raise ValueError(
                f"job of protocol {record.get('protocol')!r}; this version speaks {PROTOCOL}: "
                "run the same version of Castor on every machine"
            )

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        return record | {
            "replicas": int_rows(record["replicas"]),
            "arguments": tuple(record["arguments"]),
        }

    @property
    def limits(self) -> WatchLimits:
        """How long which silence is too long."""
        return WatchLimits(
            self.lease_s, self.hang_s, self.stall_factor, self.stall_s, self.startup_s
        )

    def ranks_of(self, machine: int) -> range:
        """Return the ranks that train on `machine`."""
        first = machine * self.ranks_per_machine
        return range(first, first + self.ranks_per_machine)

    def ranks_held_by(self, machine: int) -> list[int]:
        """Return the ranks whose part `machine` keeps a replica of, its own first."""
        shards = [machine]
        shards += [s for s, row in enumerate(self.replicas) if machine in row[1:]]
        return [rank for shard in shards for rank in self.ranks_of(shard)]

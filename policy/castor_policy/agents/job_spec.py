"""The job: what it is, written once before any agent acts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from castor_policy.agents.documents import Document, int_rows
from castor_policy.checkpoint_memory import SAVING, buffers_of
from castor_policy.job_options import JobOptions
from castor_policy.option import OptionError

PROTOCOL = 4
"""Goes up when a document changes its meaning; agents of different protocols do not mix."""


_RUN = re.compile(r"[0-9a-f]{16}")


def check_run(run: str) -> None:
    """Raise ValueError unless `run` can be a run's identity."""
    if not _RUN.fullmatch(run):
        raise ValueError(f"a run is known by 16 hex digits, not by {run!r}")


@dataclass(frozen=True)  # no slots: what follows from the placement is kept (`_shards_held`)
class JobSpec(JobOptions, Document):
    """What a job is; written once, before any agent acts, and never changed.

    What may be set of its behaviour is nested in it: `spec.traffic.mu`, see `JobOptions`.

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
    resumes: int = 0
    protocol: int = PROTOCOL
    credentials: str = ""
    allow_changed_script: bool = False

    def __post_init__(self) -> None:
        JobOptions.__post_init__(self)
        if not self.run:
            # Two jobs are never one by an omission: what was made at another time is another.
            made = f"{self.started_ns % (1 << 64):016x}"
            object.__setattr__(self, "run", made)
        check_run(self.run)
        peers = [frozenset(row[1:]) for row in self.replicas if len(row) > 1]
        if self.memory.mode == SAVING and len(set(peers)) < len(peers):
            raise OptionError(
                "memory.mode",
                "saving needs a placement in which no two machines keep their replicas on the very "
                "same others: choose fast, or another placement",
            )

    @classmethod
    def _check_version(cls, record: Mapping[str, Any]) -> None:
        if record.get("protocol") != PROTOCOL:
            raise ValueError(
                f"job of protocol {record.get('protocol')!r}; this version speaks {PROTOCOL}: "
                "run the same version of Castor on every machine"
            )

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(record["arguments"], list):  # a text is a tuple of its letters
            raise TypeError("arguments are no list")
        return record | {
            "replicas": int_rows(record["replicas"]),
            "arguments": tuple(record["arguments"]),
        }

    def ranks_of(self, machine: int) -> range:
        """Return the ranks that train on `machine`."""
        first = machine * self.ranks_per_machine
        return range(first, first + self.ranks_per_machine)

    def ranks_held_by(self, machine: int) -> list[int]:
        """Return the ranks whose part `machine` keeps a replica of, its own first."""
        return [rank for shard in self.shards_held_by(machine) for rank in self.ranks_of(shard)]

    def shards_held_by(self, machine: int) -> list[int]:
        """Return the shards that `machine` keeps a replica of, its own first."""
        return [machine, *self._shards_held.get(machine, ())]

    def buffers_of(self, machine: int, rank: int) -> int:
        """Return how many buffers `machine` has for the part of `rank`."""
        replicas = len(self.replicas[machine])
        return buffers_of(self.memory.mode, replicas, is_own=rank in self.ranks_of(machine))

    @cached_property
    def _shards_held(self) -> dict[int, list[int]]:
        """For each machine the shards of others that it keeps, in order."""
        held: dict[int, list[int]] = {}
        for shard, row in enumerate(self.replicas):
            for machine in dict.fromkeys(row[1:]):
                held.setdefault(machine, []).append(shard)
        return held

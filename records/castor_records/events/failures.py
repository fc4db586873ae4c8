"""The run as a whole, what fails in it, and how it recovers.

Both twins write these. In a simulated log every event is the job's. In a real one every machine and
every rank speaks for itself, so that there are more events, with more fields: each field that only
one of the twins fills says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from castor_records.events.event import Event
from castor_records.events.fields import Bytes, Count, Nanoseconds, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The run has begun; by the launcher, or the simulator.

    Attributes:
        positions: simulated: how many machines train.
        machines: real: how many machines train.
        ranks: real: trainers on all machines.
        replicas: real: copies of each shard in memory, the own one among them.
        placement: real: the rule that says which machines hold them.
        compute: real: "paced" if waits stand for a GPU's work, else "real".
    """

    kind: ClassVar[str] = "run_started"
    positions: Count | None = None
    machines: Count | None = None
    ranks: Count | None = None
    replicas: Count | None = None
    placement: str | None = None
    compute: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether this begins a real run's log, not a simulated one."""
        return self.ranks is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """Something was made to fail; by the launcher that injected it, or the simulator.

    Attributes:
        machine: which one is struck; nothing: none that trains, such as the store or a standby.
        position: simulated: which place in the job the machine filled.
        failure: "hardware" (the machine and its memory are gone) or "software"; simulated: "set
            aside" (it was slow, and a standby takes its place), "silent error" (that is seen now).
        target: real: what was struck, as `castor train --kill` names it.
        agent: real: of the machine.
        rank: real: whose trainer was struck, if one was.
        iteration: real: the newest that had ended.
        cause: real: why it was injected, such as the trace that it is from.
        outage_s: real: how long a link stays cut, if that has an end.
    """

    kind: ClassVar[str] = "failure"
    machine: Count | None = None
    position: Count | None = None
    failure: str
    target: str | None = None
    agent: str | None = None
    rank: Count | None = None
    iteration: Count | None = None
    cause: str | None = None
    outage_s: Seconds | None = None

    def nulls(self) -> tuple[str, ...]:
        """A real one says of what is struck that it is no machine, or no trainer."""
        return () if self.target is None else ("machine", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected(Event):
    """It is known that something failed, and who is held responsible; by the root.

    Attributes:
        generation: real: the one that the failure leads to.
        failure: real: "hardware" if a machine is gone, else "software".
        how: real: how it was seen: exit, hang, stall, lease, unreached, silent, agent,
            corrupt, memory, isolated, start and others (`castor_policy.agents.evidence`).
        machine: real: which one is held responsible; null: nobody knows.
        rank: real: whose trainer is; null: none, or nobody knows.
        agent: real: of the machine.
        cause: real: what failed, in words.
        seen: real: what others saw of it, a sentence each.
    """

    kind: ClassVar[str] = "detected"
    generation: Count | None = None
    failure: str | None = None
    how: str | None = None
    machine: Count | None = None
    rank: Count | None = None
    agent: str | None = None
    cause: str | None = None
    seen: tuple[str, ...] | None = None

    def nulls(self) -> tuple[str, ...]:
        """A real one says that nobody is held responsible."""
        return () if self.generation is None else ("machine", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Event):
    """It is decided what to load; by the root.

    Attributes:
        generation: real: that loads it.
        iteration: which one.
        tier: the slowest that a rank loads from: own_memory, peer, storage or scratch.
        lost: simulated: machines without a copy of their own shard.
        term: real: of the root.
    """

    kind: ClassVar[str] = "planned"
    generation: Count | None = None
    iteration: Count
    tier: str
    lost: Count | None = None
    term: Count | None = None


@dataclass(frozen=True, slots=True)
class Serialised(Event):
    """What lies in memory has been written where it outlives the trainers; simulated only."""

    kind: ClassVar[str] = "serialised"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced(Event):
    """A lost machine has another in its place; by the root. Simulated: all of them have.

    Attributes:
        generation: real: that it belongs to.
        machine: real: the place that is filled.
        agent: real: who fills it.
    """

    kind: ClassVar[str] = "replaced"
    generation: Count | None = None
    machine: Count | None = None
    agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained(Event):
    """A machine's place is given away, as was asked for; by the root.

    Attributes:
        generation: that begins without it.
        machine: the place.
        agent: who had it.
        iteration: that all ranks hold at, and go on from.
    """

    kind: ClassVar[str] = "drained"
    generation: Count
    machine: Count
    agent: str
    iteration: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiesTogether(Event):
    """Two copies of a shard are in one failure domain, since a plan seats them so; by the root.

    The racks as they are force it: seats are given so that as few copies as can be are together.

    Attributes:
        generation: of the plan.
        shards: those that were not so before.
        domains: where, each once.
    """

    kind: ClassVar[str] = "copies_together"
    generation: Count
    shards: tuple[Count, ...]
    domains: tuple[str, ...]

    @property
    def message(self) -> str:
        """What it means and what helps, for people."""
        shards, domains = ", ".join(map(str, self.shards)), ", ".join(self.domains)
        one = len(self.shards) == 1
        return (
            f"two copies of shard{'' if one else 's'} {shards} are in one failure domain "
            f"({domains}): if it fails as a whole, {'it is' if one else 'they are'} lost from "
            "memory; machines or standbys in other domains would keep the copies apart"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside(Event):
    """A machine that lives is held to be unfit; by the root.

    Attributes:
        generation: that it belongs to.
        machine: the place that it filled.
        agent: who filled it.
        reason: why, in words that follow the agent's name.
        stays: it keeps its place, for nobody is free to take it.
    """

    kind: ClassVar[str] = "set_aside"
    generation: Count
    machine: Count
    agent: str
    reason: str
    stays: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved(Event):
    """A part is in memory; by the agent. Simulated: every rank has its shard.

    Attributes:
        generation: real: that loads it.
        machine: real: in whose memory.
        rank: real: whose part it is.
        own: real: the machine trains this rank; else it is a replica kept for another.
        iteration: which one.
        source: real: own_memory, peer:AGENT (of several at once peer:AGENT,AGENT, who sent most
            first), storage or scratch.
        source_machine: real: the first peer's number; -1: none sent it.
        bytes: real: how much was sent.
        seconds: real: how long that took.
    """

    kind: ClassVar[str] = "retrieved"
    generation: Count | None = None
    machine: Count | None = None
    rank: Count | None = None
    own: bool | None = None
    iteration: Count
    source: str | None = None
    source_machine: Count | None = None
    bytes: Bytes | None = None
    seconds: Seconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redundant(Event):
    """All that belongs in a machine's memory is there again, or comes with the next checkpoint.

    By the agent.

    Attributes:
        generation: of its trainers.
        machine: which one.
    """

    kind: ClassVar[str] = "redundant"
    generation: Count
    machine: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded(Event):
    """A machine trains while replicas that belong there are still fetched; until `redundant`.

    By the agent, where the job's `redundancy` is "degraded".

    Attributes:
        generation: of its trainers.
        machine: which one.
    """

    kind: ClassVar[str] = "degraded"
    generation: Count
    machine: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt(Event):
    """A part in memory is damaged: its checksum does not hold; by the agent.

    Attributes:
        machine: in whose memory.
        rank: whose part it is.
        iteration: which one.
        generation: that wanted to load it.
    """

    kind: ClassVar[str] = "corrupt"
    machine: Count
    rank: Count
    iteration: Count
    generation: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStarted(Event):
    """A trainer was forked; by the agent.

    Attributes:
        generation: of it.
        rank: of it.
        pid: its process.
    """

    kind: ClassVar[str] = "trainer_started"
    generation: Count
    rank: Count
    pid: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStayed(Event):
    """A trainer of the generation before goes on in this one, without a restart; by the agent.

    Attributes:
        generation: that it goes on in.
        rank: of it.
        pid: its process.
    """

    kind: ClassVar[str] = "trainer_stayed"
    generation: Count
    rank: Count
    pid: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareStarted(Event):
    """A warm spare was forked beside a trainer; by the agent.

    Attributes:
        generation: 0: it has none.
        rank: whose place it may take.
        pid: its process.
        memory_bytes: that its trainer has for itself, as it will have.
    """

    kind: ClassVar[str] = "spare_started"
    generation: Count
    rank: Count
    pid: Count
    memory_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareReady(Event):
    """A warm spare has built its engine, and waits; by the agent.

    Attributes:
        generation: 0: it has none.
        rank: whose place it may take.
    """

    kind: ClassVar[str] = "spare_ready"
    generation: Count
    rank: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareTaken(Event):
    """A warm spare takes its rank's place; by the agent.

    Attributes:
        generation: that it joins.
        rank: of it.
        pid: its process.
    """

    kind: ClassVar[str] = "spare_taken"
    generation: Count
    rank: Count
    pid: Count


JOINED: Final = (TrainerStarted, TrainerStayed, SpareTaken)
"""What tells that a rank's process begins its part in a generation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """Training goes on; by each trainer. Simulated: the job's does.

    Attributes:
        generation: real: of the trainer.
        rank: real: of the trainer.
        iteration: the one that was loaded.
        tier: simulated: own_memory, peer, storage or scratch.
        lost_progress_ns: simulated: training time that has to be done again.
        wait: real: how long the trainer waited for its part.
        verify: real, in earlier versions: how long it took to check the part before `restore`.
        restore: real: how long it took to copy and check the part, where it came from memory.
        storage: real: how long it took to read and copy the part, where it came from storage.
    """

    kind: ClassVar[str] = "resumed"
    generation: Count | None = None
    rank: Count | None = None
    iteration: Count
    tier: str | None = None
    lost_progress_ns: Nanoseconds | None = None
    wait: Seconds | None = None
    verify: Seconds | None = None
    restore: Seconds | None = None
    storage: Seconds | None = None

    @property
    def loading_s(self) -> float:
        """How long a real trainer checked and loaded its part."""
        return sum(part or 0.0 for part in (self.verify, self.restore, self.storage))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The simulated run is over.

    Attributes:
        iteration: what it came to.
    """

    kind: ClassVar[str] = "run_ended"
    iteration: Count

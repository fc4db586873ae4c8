"""The store that holds the job's plan, its root, and persistent storage; real runs only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castor_records.events.event import Event
from castor_records.events.fields import Count, Nanoseconds, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RootElected(Event):
    """An agent is the root from now on; by it.

    Attributes:
        agent: which one.
        term: of the root; each has a higher one than those before it.
    """

    kind: ClassVar[str] = "root_elected"
    agent: str
    term: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLost(Event):
    """An agent does not reach the store; by it.

    Attributes:
        agent: which one.
    """

    kind: ClassVar[str] = "store_lost"
    agent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBack(Event):
    """An agent reaches the store again; by it.

    Attributes:
        agent: which one.
    """

    kind: ClassVar[str] = "store_back"
    agent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTrouble(Event):
    """Something in the store cannot be used, or can be again; by an agent.

    Attributes:
        agent: which one.
        about: a key of the store, or what else of it.
        reason: what is wrong; "": nothing any more.
    """

    kind: ClassVar[str] = "store_trouble"
    agent: str
    about: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Persisted(Event):
    """A machine's share of a persistent checkpoint is written; by its agent.

    Attributes:
        machine: which one.
        iteration: of the checkpoint.
        generation: that trained it.
        seconds: how long it took to write.
        where: the folder or URL.
    """

    kind: ClassVar[str] = "persisted"
    machine: Count
    iteration: Count
    generation: Count | None = None
    seconds: Seconds | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistFailed(Event):
    """A machine's share of a persistent checkpoint was not written; by its agent.

    Attributes:
        machine: which one.
        iteration: of the checkpoint.
        generation: that trained it.
        cause: why not.
        where: the folder or URL.
    """

    kind: ClassVar[str] = "persist_failed"
    machine: Count
    iteration: Count
    generation: Count | None = None
    cause: str
    where: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistLeftOut(Event):
    """A machine left a persistent checkpoint out: storage was busy with another; by its agent.

    Attributes:
        machine: which one.
        iteration: of the checkpoint that was due.
        generation: that trained it.
        busy_s: for how long this machine's share of an earlier one had been under way when it was
            due; 0: it had none, and other machines had.
        where: the folder or URL.
    """

    kind: ClassVar[str] = "persist_left_out"
    machine: Count
    iteration: Count
    generation: Count | None = None
    busy_s: Seconds
    where: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockMeasured(Event):
    """An agent has compared its host's clock with that of another agent's host; by the former.

    Attributes:
        agent: whose log this is.
        reference: the agent that it asked: machine 0's.
        offset_ns: to be added to the times of `agent` to have those of `reference`.
        uncertainty_ns: half of what the fastest answer took; the true offset is no further away.
    """

    kind: ClassVar[str] = "clock_measured"
    agent: str
    reference: str
    offset_ns: Nanoseconds
    uncertainty_ns: Nanoseconds

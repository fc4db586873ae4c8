"""What happens to an agent: the events that go into its worker and its root.

Times are seconds on the driver's own steady clock. Every event that answers an effect carries the
generation that the effect was issued in, so that an answer from an earlier one is recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.plan import Plan
from castor_policy.agents.wish import Wish


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A lease was granted; `plan` is the plan as read after that, None if there is none yet.

    `sent_s`: when the request for it was sent, by the driver's clock.
    """

    plan: Plan | None
    sent_s: float = float("-inf")


@dataclass(frozen=True, slots=True)
class SessionRenewed:
    """The lease was renewed by a request that was sent at `sent_s`."""

    sent_s: float


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The store says that the lease is gone; the driver opens a new session next."""


@dataclass(frozen=True, slots=True)
class StoreLost:
    """The store does not answer."""


@dataclass(frozen=True, slots=True)
class NameTaken:
    """The lease has ended and another life of the same name has claimed it: `by` says which."""

    by: str


@dataclass(frozen=True, slots=True)
class StoreTrouble:
    """The store answers, but something there cannot be used, and is done without.

    Attributes:
        about: what: a key that holds no document of ours, "data" that were lost, "space" that is
            missing, "history" that was compacted, or a "task" of the agent's that failed.
        reason: a sentence; "": that trouble is over.
    """

    about: str
    reason: str


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """The agent cannot keep its place in the store, by a fault of its own; `reason` says which."""

    reason: str


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """The plan in the store, as a watch or a read shows it; `revision` is of its last change."""

    plan: Plan
    revision: int


@dataclass(frozen=True, slots=True)
class PlanLost:
    """The plan's key was deleted, or holds no plan any more; `revision` is its last change's."""

    revision: int


@dataclass(frozen=True, slots=True)
class ReportChanged:
    """An agent's report; None once its lease has expired."""

    agent: str
    report: AgentReport | None


@dataclass(frozen=True, slots=True)
class RootChanged:
    """Who holds the root's key; "" for nobody."""

    agent: str


@dataclass(frozen=True, slots=True)
class PersistChanged:
    """The root asks for a persistent checkpoint of this iteration."""

    iteration: int


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """The root asks the trainers of this generation to hold after their next checkpoint."""

    generation: int


@dataclass(frozen=True, slots=True)
class WishChanged:
    """What the job's user asks for under this key of the store; None once it does not stand."""

    key: str
    wish: Wish | None


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """This machine is to go: its place is to be given away first, for `patience_s` at most."""

    patience_s: float


@dataclass(frozen=True, slots=True)
class Inspected:
    """What this machine's memory and the storage hold, its trainers being dead or parked.

    `holdings` gives for each rank the complete iterations of its part; `persistent` is None where
    storage has not answered yet: `StorageRead` follows once it has. `asked`: of `Inspect`.
    `parked`: ranks whose trainers are kept (`ParkTrainers`).
    """

    generation: int
    holdings: Mapping[int, tuple[int, ...]]
    persistent: tuple[int, ...] | None
    rendezvous: str
    asked: int = 0
    parked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StorageRead:
    """The complete iterations in persistent storage, after an inspection that did not wait."""

    generation: int
    persistent: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PersistEnded:
    """This machine's share of a persistent checkpoint is written, or why it is not.

    `reason`: "" where all went well. It speaks of storage, whatever generation it was begun in.
    `everywhere`: the checkpoint counts, of all machines, in a tier of storage.
    `in_vain`: every tier has been tried, and none took it.
    """

    iteration: int
    reason: str = ""
    everywhere: bool = False
    in_vain: bool = False


@dataclass(frozen=True, slots=True)
class Verified:
    """The part of `rank` in own memory was read against its checksums."""

    generation: int
    rank: int
    intact: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """A part has come, whole, and is complete in own memory.

    `sources`: the machines that it came from, who sent most of it first.
    """

    generation: int
    rank: int
    sources: tuple[int, ...]
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """None of the machines asked could give the part: dead, without it, or with a corrupt copy.

    `unreached`: they gave no answer, or refused this machine: who of them is at fault is open.
    """

    generation: int
    rank: int
    reason: str
    unreached: bool = False


@dataclass(frozen=True, slots=True)
class TrainerResumed:
    """A trainer has loaded its part and begins to train."""

    generation: int
    rank: int


@dataclass(frozen=True, slots=True)
class TrainerHeld:
    """A trainer holds, as it was asked: `iteration` is complete everywhere, and no later one is."""

    generation: int
    rank: int
    iteration: int


@dataclass(frozen=True, slots=True)
class TrainerRefused:
    """A trainer found its part corrupt when it loaded it."""

    generation: int
    rank: int


@dataclass(frozen=True, slots=True)
class TrainerEnded:
    """A trainer's process ended; negative codes are signals, as in `subprocess`.

    Attributes:
        generation: its trainer's.
        rank: its trainer's.
        code: its exit code.
        reason: its last words, and the kernel's about it.
        lost_peer: they are those of a process that lost its connection to another.
        left_early: it ended with 0 and had not said that it had finished.
    """

    generation: int
    rank: int
    code: int
    reason: str = ""
    lost_peer: bool = False
    left_early: bool = False


@dataclass(frozen=True, slots=True)
class TrainerLostPeer:
    """A trainer that can go on in place lost its connection to another, and waits.

    Attributes:
        generation: its trainer's.
        rank: its trainer's.
        reason: what its transport said.
    """

    generation: int
    rank: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TrainerHung:
    """A trainer's process stands still: stopped, or stuck in the kernel."""

    generation: int
    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class TrainersStanding:
    """None of this machine's trainers has shown a sign of life for the job's limit.

    `positions`: how far each has come, see `trainer_watch.Position`; empty: they go on again.
    """

    generation: int
    positions: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class MemoryRefused:
    """The parts do not fit into this machine's memory; `reason` has the table."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """The newest iteration that this machine's trainers have all finished, whenever it changes.

    `agreed`: the newest of which they know that all its replicas have arrived everywhere.
    """

    generation: int
    iteration: int
    agreed: int = 0


@dataclass(frozen=True, slots=True)
class Finalised:
    """The final digests of this machine's parts, at the end of `iteration`, are written."""

    generation: int
    iteration: int


@dataclass(frozen=True, slots=True)
class PeersAnswered:
    """Peers that answered a ping, with the generation that each of them knows."""

    generations: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A life of an agent that is watched cannot be reached; see `WatchPeers`."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class PeerFound:
    """A life that could not be reached can be again."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes. The driver sends one at least every `TICK_S`."""


TICK_S = 0.25
"""Longest time between two ticks; every deadline of the agents is a multiple of it."""

WorkerEvent: TypeAlias = (
    SessionOpened
    | SessionRenewed
    | SessionLost
    | StoreLost
    | NameTaken
    | StoreTrouble
    | SessionFailed
    | PlanChanged
    | PlanLost
    | RootChanged
    | PersistChanged
    | HoldChanged
    | WishChanged
    | LeaveAsked
    | Inspected
    | StorageRead
    | PersistEnded
    | Verified
    | Fetched
    | FetchFailed
    | TrainerResumed
    | TrainerHeld
    | TrainerRefused
    | TrainerEnded
    | TrainerHung
    | TrainerLostPeer
    | TrainersStanding
    | MemoryRefused
    | Progressed
    | Finalised
    | PeersAnswered
    | PeerLost
    | PeerFound
    | Tick
)
RootEvent: TypeAlias = PlanChanged | PlanLost | ReportChanged | WishChanged | Tick
AgentEvent: TypeAlias = WorkerEvent | ReportChanged
"""What one life of an agent takes in: see `castor_policy.agents.life`."""

"""What an agent is to do: the effects that worker and root return, for a driver to carry out.

They are carried out in the order in which they are returned. One that is answered says by which
event (`castor_policy.agents.events`), and carries the generation that the answer repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.neighbours import Neighbour
from castor_policy.agents.plan import Plan
from castor_policy.agents.wish import Wish
from castor_records.events.event import Event


@dataclass(frozen=True, slots=True)
class Report:
    """Put this report into the store, under the agent's lease."""

    report: AgentReport


@dataclass(frozen=True, slots=True)
class Campaign:
    """Try to create the root's key under the agent's lease; who succeeds is root."""


@dataclass(frozen=True, slots=True)
class StopTrainers:
    """Kill this machine's trainers and wait for their end; give up fetches and verifications.

    Effects that follow in the same list are carried out after it.
    """


@dataclass(frozen=True, slots=True)
class ParkTrainers:
    """Have this machine's trainers leave their generation, and keep those that do.

    They write nothing from then on, and wait for `StartTrainers`, which has them join the plan's
    generation if that goes on in place. Who cannot, or does not leave in time, is killed. Fetches
    and verifications are given up. Effects that follow are carried out after it; `Inspected` says
    who is parked.
    """


@dataclass(frozen=True, slots=True)
class Inspect:
    """Look at own memory and at storage; answer with `Inspected` without waiting for storage.

    `thorough`: read every part against its checksums, and do not offer what does not match.
    `asked`: how often the machine was inspected before in this generation; the answer repeats it.
    """

    generation: int
    machine: int
    thorough: bool = False
    asked: int = 0


@dataclass(frozen=True, slots=True)
class DiscardOtherIterations:
    """Invalidate every replica of another iteration than this; None: of any."""

    iteration: int | None


@dataclass(frozen=True, slots=True)
class Forget:
    """This agent fills no machine any more: give its checkpoint memory back."""


@dataclass(frozen=True, slots=True)
class StartTrainers:
    """Have this machine's trainers join the plan's generation: those parked, the others started.

    Where the plan does not go on in place those parked are killed first.
    """

    plan: Plan
    machine: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Read own memory's part of `rank` against its checksums; answer with `Verified`."""

    generation: int
    rank: int
    iteration: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch a part into own memory from all `sources` at once; answer `Fetched` or `FetchFailed`.

    `addresses`: of their checkpoint servers, in the same order.
    `urgent`: a trainer of this machine waits for it; the others make redundancy whole again.
    """

    generation: int
    rank: int
    iteration: int
    sources: tuple[int, ...]
    addresses: tuple[str, ...]
    urgent: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """Tell the trainer of `rank` to load `iteration` from `tier`."""

    generation: int
    rank: int
    iteration: int
    tier: str


@dataclass(frozen=True, slots=True)
class StopFetching:
    """Give up what is still being fetched for this generation: a checkpoint has replaced it.

    What follows waits until nobody writes it any more.
    """

    generation: int


@dataclass(frozen=True, slots=True)
class Redundant:
    """Every replica that belongs on this machine is settled: trainers may checkpoint again."""

    generation: int


@dataclass(frozen=True, slots=True)
class Finalise:
    """Every trainer ended well: write the digests of the final state; answer `Finalised`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Write this machine's parts of `iteration` to persistent storage once they are complete."""

    generation: int
    iteration: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Have the trainers hold once their next checkpoint is complete; each answers `TrainerHeld`."""

    generation: int


@dataclass(frozen=True, slots=True)
class AskDrain:
    """Put the wish that this machine be drained into the store."""

    wish: Wish


@dataclass(frozen=True, slots=True)
class PingPeers:
    """Ask the other machines' agents for the generation they know; answer `PeersAnswered`."""

    addresses: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class WatchPeers:
    """Keep a connection to each of these lives, and to no others.

    Answer `PeerLost` once one cannot be reached for `within_s` seconds, or at once where its host
    says that nobody listens there any more; and `PeerFound` when one can be reached again.
    """

    peers: tuple[Neighbour, ...]
    within_s: float


@dataclass(frozen=True, slots=True)
class Depose:
    """Take the root's key from `agent`, if what all agents say is that its machine is lost.

    See `neighbours.may_be_deposed`; fenced by the term that is seen when this is carried out.
    """

    agent: str


@dataclass(frozen=True, slots=True)
class WritePlan:
    """Put the plan into the store if the root's key still has this term (invariant 6).

    And if the plan there was last changed at `after` (0: there is none): a write whose answer was
    lost may still arrive, and what is decided must be decided on what it left. The wishes under
    the keys `grants` are done by it, and go with the same write.
    """

    term: int
    plan: Plan
    after: int
    grants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AskPersist:
    """Put the iteration to persist into the store, fenced as `WritePlan` is."""

    term: int
    iteration: int


@dataclass(frozen=True, slots=True)
class AskHold:
    """Ask the trainers of a generation to hold, fenced as `WritePlan` is."""

    term: int
    generation: int


@dataclass(frozen=True, slots=True)
class GrantWishes:
    """Take out of the store the wishes that are done, fenced as `WritePlan` is.

    By the plan, too: what is done by one may be asked for anew by the next.
    """

    term: int
    keys: tuple[str, ...]
    after: int


@dataclass(frozen=True, slots=True)
class RequestMachine:
    """Ask the operator for a machine, fenced as `WritePlan` is; same `request`, same machine."""

    term: int
    request: str


@dataclass(frozen=True, slots=True)
class Resign:
    """Give the root's key up, if it still has this term: others know more than this agent."""

    term: int


@dataclass(frozen=True, slots=True)
class Log:
    """Write an event into the event log.

    `at_s`: when it happened, in seconds from the job's start by the clock on the wall; None: now.
    """

    event: Event
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """The agent's work is over."""

    code: int
    reason: str = ""


WorkerEffect: TypeAlias = (
    Report
    | Campaign
    | StopTrainers
    | ParkTrainers
    | Inspect
    | DiscardOtherIterations
    | Forget
    | StartTrainers
    | Verify
    | Fetch
    | Offer
    | StopFetching
    | Redundant
    | Finalise
    | Persist
    | Hold
    | AskDrain
    | PingPeers
    | WatchPeers
    | Depose
    | Log
    | Exit
)
RootWrite: TypeAlias = WritePlan | AskPersist | AskHold | GrantWishes | RequestMachine | Resign
RootEffect: TypeAlias = RootWrite | Log

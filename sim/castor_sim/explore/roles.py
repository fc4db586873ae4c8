"""What the parts of an explored world know of each other: machine, agent, trainer, and the scene.

Agents start trainers, trainers tell agents, and the monitor looks at all of them. Each is written
against what stands here, so that no module needs the one that needs it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from castor_policy.agents.effects import Offer, Persist
from castor_policy.agents.events import AgentEvent, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_view import StoreView
from castor_policy.agents.worker import Worker
from castor_sim.explore.checkpoint_model import Memory, Replica
from castor_sim.explore.script_error import ScriptError
from castor_sim.explore.truth import Truth


@dataclass(frozen=True, slots=True)
class Segment:
    """A replica in a machine's shared memory, of another run than this one or not.

    Attributes:
        run: whose it is.
        rank: whose part.
        replica: it.
    """

    run: str
    rank: int
    replica: Replica


@dataclass(slots=True, eq=False)
class Host:
    """A machine: what outlives an agent's process, and what slows all of it down."""

    name: str
    standby: bool
    domain: str = ""
    memory: Memory = field(default_factory=dict)
    paused: bool = False
    slowness: float = 1.0
    lives: int = 0
    lives_before_boot: int = 0
    lacks_memory: bool = False
    stop_stuck_until_s: float = 0.0
    memory_stuck_until_s: float = 0.0
    storage_silent_until_s: float = 0.0
    left: list[Segment] = field(default_factory=list)


class Trainer(Protocol):
    """One trainer's process, as its agent, its group and the monitor know it."""

    agent: Agent
    rank: int
    machine: int
    generation: int
    alive: bool
    resumed: bool
    has_trained: bool
    has_finished: bool
    holds: bool
    hung_since_s: float | None
    progress_s: float
    iteration: int
    state: int
    agreed: int | None
    loaded: int
    kept: int
    captured: int
    capturing: int
    turned: int
    turning: int | None

    @property
    def group(self) -> Group:
        """The trainers that it is bound to."""

    def begin(self) -> None:
        """Come up; then ask what to load."""

    def load(self) -> None:
        """Load what is offered, once both are there."""

    def can_run(self) -> bool:
        """Whether the process is given time."""

    def update(self) -> None:
        """Do the optimizer's update."""

    def agree(self, iteration: int) -> None:
        """Learn that every rank has all replicas of `iteration`."""

    def begin_turn(self) -> None:
        """Write over the only own buffer."""

    def end_turn(self) -> None:
        """Be done with it."""

    def turn_at_last(self, newest: int) -> None:
        """Do what is left to do of a turn."""

    def leave(self, *, said: bool) -> None:
        """End with code 0 in the middle of training."""

    def hold(self) -> None:
        """Go no further, and tell the agent."""

    def end(self, code: int) -> None:
        """End the process; who waits for it is told."""

    def lose_peer(self) -> None:
        """Find that another trainer is gone."""

    def kill(self) -> None:
        """End the process by its own agent's hand."""


class Group(Protocol):
    """The trainers of one generation, bound together by their collectives."""

    def join(self, trainer: Trainer) -> None:
        """Enter the first collective."""

    def lost(self, trainer: Trainer) -> None:
        """Let the others find out, or hang."""

    def redundant(self, agent: Agent) -> None:
        """Begin captures that waited for the machine's replicas to be settled."""


class Agent(Protocol):
    """One life of one agent, as its machine, its trainers, the store and the monitor know it."""

    name: str
    incarnation: str
    host: Host
    draw: random.Random
    worker: Worker
    alive: bool
    exited: int | None
    paused: bool
    is_stuck: bool
    trainers: dict[int, Trainer]
    offers: dict[int, Offer]
    parked: frozenset[int]
    redundant_generation: int
    fetches_no_more: int
    work: int
    persist: Persist | None
    hold_asked: int
    lease_counts_from_s: float

    @property
    def has_obeyed(self) -> bool:
        """Whether all that it was told is done, or begun."""

    @property
    def lease(self) -> int | None:
        """The lease that its keys live by."""

    @property
    def view(self) -> StoreView:
        """What it has seen of the store."""

    def local_s(self) -> float:
        """Return what this machine's steady clock says."""

    def real_s(self, local_s: float) -> float:
        """Return how long it takes until this clock has gone on by `local_s`."""

    def set_clock(self, rate: float, jump_s: float) -> None:
        """Let the clock jump forward and run at another rate from now on."""

    def moment(self) -> object:
        """Return what changes when this agent is paused or its clock is."""

    def latency_s(self) -> float:
        """Return how long a message to or from the store takes."""

    def later(self, delay_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call back after a time, unless the agent has died."""

    def see(self, event: AgentEvent) -> None:
        """Take an event in."""

    def hold(self, span_s: float, then: Callable[[], None], stuck_until_s: float = 0.0) -> None:
        """Let the worker do nothing until `then` is done."""

    def serves(self) -> bool:
        """Whether the lease is kept: not by who is stuck."""

    def claimed(self) -> None:
        """Begin, once the name is this life's."""

    def refuse(self, reason: str) -> None:
        """End with a sentence for whoever started this."""

    def wake(self, *, timers_first: bool) -> None:
        """Go on after a pause with what has come meanwhile."""

    def end(self) -> None:
        """End the process; its trainers end with it."""

    def trainer_said(self, event: WorkerEvent) -> None:
        """Pass on what a trainer of this machine said, or what it shows in shared memory."""

    def trainer_ended(self, trainer: Trainer, code: int) -> None:
        """Pass on that a trainer's process has ended."""


class Scene(Protocol):
    """All that the monitor looks at: who lives where, and what is true."""

    script_error: ScriptError | None

    @property
    def spec(self) -> JobSpec:
        """The job."""

    @property
    def truth(self) -> Truth:
        """What training came to."""

    @property
    def hosts(self) -> Sequence[Host]:
        """Every machine there has been."""

    @property
    def agents(self) -> Mapping[str, Agent]:
        """By name, the life that holds it."""

    @property
    def now_s(self) -> float:
        """Simulated time."""

    def root_term(self) -> int:
        """Return the term of the root that the store has now; 0 if it has none."""

    def quiet_since_s(self) -> float:
        """Return when the last fault that has struck is over."""

    def is_quiet(self) -> bool:
        """Whether every fault is over."""

    def live(self) -> Sequence[Agent]:
        """Return the agents that live, by name."""

    def on(self, host: Host) -> Sequence[Agent]:
        """Return the agents that live on a machine."""

    def at(self, address: str) -> Agent | None:
        """Return the live agent at an address."""

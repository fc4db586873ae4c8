"""A trainer as a process: it comes up, loads, updates and ends.

What the runtime's trainer does with tensors, sockets and shared memory; what all ranks do together
is `group`'s.
"""

from __future__ import annotations

from castor_policy.agents.effects import Offer
from castor_policy.agents.events import (
    Progressed,
    TrainerHeld,
    TrainerLostPeer,
    TrainerRefused,
    TrainerResumed,
)
from castor_policy.recovery import Tier
from castor_sim.explore.checkpoint_model import Chunk, part_of
from castor_sim.explore.persisting import persist_parts
from castor_sim.explore.roles import Agent, Group
from castor_sim.explore.surroundings import Surroundings
from castor_sim.explore.truth import first_state, next_state

BLOCKED_S = 0.1
"""Who is kept from going on tries again so often."""

_TOLD_S = (0.01, 0.6)  # until an agent hears of its trainer's end, where that takes long
_TOLD_LATE = 0.3  # its peers may well be heard of sooner

_COMES_UP_S = (0.05, 0.3)
_JOINS_S = (0.005, 0.1)

LOST_PEER = 1
"""Exit code of a trainer whose connection to another one broke."""

OWN_ERROR = 2
"""Exit code of a trainer whose script fails."""


class SimulatedTrainer:
    """One trainer's process.

    Args:
        world: around it.
        agent: who has started it.
        group: the trainers of its generation.
        rank: whose part it trains.
        machine: its place.
        generation: of the plan.
        stays: it was there in the generation before, and has left it.
        is_built_alone: it was built without the others, who stay; what it begins with is its own.
    """

    __slots__ = (
        "agent",
        "agreed",
        "alive",
        "captured",
        "capturing",
        "generation",
        "group",
        "has_finished",
        "has_trained",
        "holds",
        "hung_since_s",
        "is_built_alone",
        "iteration",
        "kept",
        "loaded",
        "machine",
        "progress_s",
        "rank",
        "ready",
        "resumed",
        "state",
        "stays",
        "turned",
        "turning",
        "world",
    )

    def __init__(
        self,
        world: Surroundings,
        agent: Agent,
        group: Group,
        rank: int,
        machine: int,
        generation: int,
        *,
        stays: bool = False,
        is_built_alone: bool = False,
    ) -> None:
        self.world = world
        self.stays = stays
        self.is_built_alone = is_built_alone
        self.agent = agent
        self.rank = rank
        self.machine = machine
        self.generation = generation
        self.group = group
        self.alive = True
        self.ready = False
        self.resumed = False
        self.has_trained = False
        self.has_finished = False
        self.holds = False
        self.hung_since_s: float | None = None
        self.progress_s = world.now_s
        self.iteration = 0
        self.state = 0
        self.agreed: int | None = None
        self.loaded = 0
        self.kept = 0  # newest iteration that was loaded, or agreed on since
        self.captured = 0  # newest iteration whose capture is over; no update before it is
        self.capturing = 0  # the one that is being captured
        self.turned = 0  # newest iteration that the only own buffer was, or is being, turned to
        self.turning: int | None = None  # that buffer, while it is

    def begin(self) -> None:
        """Come up; then ask what to load."""
        span_s = _JOINS_S if self.stays else _COMES_UP_S
        self._later(self.agent.draw.uniform(*span_s), self._came_up)

    def _came_up(self) -> None:
        self.ready = True
        self.load()

    def load(self) -> None:
        """Load what is offered, once both are there: the offer and this process."""
        offer = self.agent.offers.get(self.rank)
        if offer is not None and self.ready and not self.resumed:
            del self.agent.offers[self.rank]
            self._later(self.agent.draw.uniform(0.02, 0.1), self._load, offer)

    def _load(self, offer: Offer) -> None:
        found = self._read(offer)
        if found is None:
            self.agent.trainer_said(TrainerRefused(self.generation, self.rank))
            return
        self.iteration = self.captured = self.kept = self.loaded = offer.iteration
        self.state = found[0][0]
        self.agreed = self.iteration if offer.tier in (Tier.OWN_MEMORY, Tier.PEER) else None
        self.resumed = True
        self.progress_s = self.world.now_s
        self.world.monitor.loaded(self, offer.tier, found)
        self.agent.trainer_said(TrainerResumed(self.generation, self.rank))
        self.group.join(self)

    def _read(self, offer: Offer) -> list[Chunk] | None:
        """Return the part that is offered; None if it is not there or its digests differ."""
        if offer.tier == Tier.SCRATCH:
            # Weights that were drawn without the others are nobody else's.
            number = -1 if self.is_built_alone else self.world.run_number
            return part_of(first_state(number, self.rank))
        if offer.tier == Tier.STORAGE:
            name = self.agent.name
            persistent = self.world.storage.read(name, offer.iteration, self.rank)
            if persistent is None:
                return None
            part, line = persistent
            self.world.truth.switch(self.generation, line)
            return part
        replica = self.agent.host.memory.get(self.rank)
        index = replica.find(offer.iteration) if replica is not None else None
        if replica is None or index is None:
            return None
        if not replica.is_intact(index):
            replica.mark_corrupt(index)
            return None
        return replica.chunks(index)

    def can_run(self) -> bool:
        """Whether the process is given time."""
        return self.alive and self.hung_since_s is None and not self.agent.host.paused

    def update(self) -> None:
        """Do the optimizer's update: the state before it is gone."""
        self.has_trained = True
        self.iteration += 1
        self.state = next_state(self.state, self.iteration, self.generation)
        self.progress_s = self.world.now_s
        self.world.monitor.iteration_ended(self)
        self._show_progress()

    def _show_progress(self) -> None:
        mine = [t for t in self.agent.trainers.values() if t.generation == self.generation]
        newest = min(trainer.iteration for trainer in mine)
        agreed = min(trainer.agreed or 0 for trainer in mine)
        self.agent.trainer_said(Progressed(self.generation, newest, agreed))

    def agree(self, iteration: int) -> None:
        """Learn that every rank has all replicas of `iteration`."""
        self.agreed = self.captured = self.kept = iteration
        self._show_progress()
        persist_parts(self.world, self.agent, self.generation)

    # ---- an own replica of one buffer: see `castor_runtime.arena.own_turn` ---------------------

    def begin_turn(self) -> None:
        """Write over the only own buffer: all remote replicas are agreed on."""
        replica = self.agent.host.memory[self.rank]
        self.turned = self.iteration
        self.world.monitor.turns(self)
        self.turning = replica.begin(self.iteration, self.generation, self.iteration)
        replica.write(self.turning, (self.state, 0))

    def end_turn(self) -> None:
        """Be done with it; nothing if it is not under way."""
        if self.turning is None:
            return
        index, self.turning = self.turning, None
        replica = self.agent.host.memory[self.rank]
        replica.write(index, (self.state, 1))
        replica.commit(index, part_of(self.state))
        self.world.monitor.stored(self.agent, self.rank, replica, index)

    def turn_at_last(self, newest: int) -> None:
        """Do what is left to do of a turn, as its agent says before it kills it.

        Args:
            newest: the iteration that a trainer of this machine has turned to.
        """
        behind = self.turned < newest == self.capturing
        if not self.alive or not (behind or self.turning is not None):
            return
        if not self.can_run():
            self._lose_own()
            return
        if behind:
            self.begin_turn()
        self.end_turn()

    def _lose_own(self) -> None:
        """Be gone with what the own replica was to hold, or without what the others' hold."""
        self.turning = None
        self.world.monitor.flipped(self.machine, self.rank)

    def hold(self) -> None:
        """Go no further, and tell the agent."""
        self.holds = True
        self.agent.trainer_said(TrainerHeld(self.generation, self.rank, self.iteration))

    def leave(self, *, said: bool) -> None:
        """End with code 0 in the middle of training; the others lose it as they would a dead one.

        Args:
            said: it tells its agent before that it has finished.
        """
        self.has_finished = said
        self.end(0)
        self.group.lost(self)

    def end(self, code: int) -> None:
        """End the process; who waits for it is told."""
        if self.alive:
            if code not in (0, LOST_PEER):
                self.world.monitor.blame.struck(self.generation, self.rank)
            self._leave_own(killed=code < 0)
            self.alive = False
            self.world.note(f"rank {self.rank} of generation {self.generation} ends: {code}")
            late = self.agent.draw.random() < _TOLD_LATE
            told_s = self.agent.draw.uniform(*_TOLD_S) if late else 0.01
            self.agent.later(told_s, self.agent.trainer_ended, self, code)
            if code != 0:
                self.group.lost(self)

    def lose_peer(self) -> None:
        """Find that another one is gone: end by that, or wait to be told what to do."""
        if self.world.in_place:
            self.agent.trainer_said(TrainerLostPeer(self.generation, self.rank, "closed"))
        else:
            self.end(LOST_PEER)

    def kill(self) -> None:
        """End the process by its own agent's hand, or with its agent."""
        if self.alive:
            self._leave_own(killed=True)
            self.alive = False
            self.group.lost(self)

    def _leave_own(self, *, killed: bool) -> None:
        """Let a turn end with the process: a process that ends by itself waits for it."""
        if self.turning is None:
            return
        if killed:
            self._lose_own()
        else:
            self.end_turn()

    def _later(self, delay_s: float, what: object, *arguments: object) -> None:
        self.world.after(delay_s * self.agent.host.slowness, self._go_on, what, arguments)

    def _go_on(self, what: object, arguments: tuple[object, ...]) -> None:
        if not self.alive:
            return
        if not self.can_run():
            self.world.after(BLOCKED_S, self._go_on, what, arguments)
        elif callable(what):
            what(*arguments)

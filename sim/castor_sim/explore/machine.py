"""What the worker's effects do on a simulated machine: memory, fetches, trainers."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch

from castor_policy.agents.effects import (
    DiscardOtherIterations,
    Fetch,
    Finalise,
    Forget,
    Hold,
    Inspect,
    Log,
    Offer,
    Persist,
    PingPeers,
    Redundant,
    StartTrainers,
    StopFetching,
    Verify,
    WorkerEffect,
)
from castor_policy.agents.events import (
    Finalised,
    Inspected,
    MemoryRefused,
    PeersAnswered,
    StorageRead,
    Verified,
)
from castor_sim.explore.checkpoint_model import Replica
from castor_sim.explore.fetching import PartFetch, peer_at
from castor_sim.explore.persisting import persist_parts
from castor_sim.explore.roles import Agent
from castor_sim.explore.surroundings import Surroundings
from castor_sim.explore.trainer import SimulatedTrainer

_READ_S = (0.01, 0.1)
_CONNECT_S = (0.001, 0.05)
_STORAGE_LATE = 0.05  # of the inspections, that storage answers later than memory
_STORAGE_S = (0.1, 5.0)
_PING_S = (0.01, 0.3)


@singledispatch
def carry_out(effect: WorkerEffect, _world: Surroundings, _agent: Agent) -> None:
    """Do what the worker wants done; answers go to `agent.see`.

    Raises:
        TypeError: nothing is registered for an effect of this type.
    """
    raise TypeError(f"nothing carries out a {type(effect).__name__}")


@carry_out.register(Inspect)
def _(effect: Inspect, world: Surroundings, agent: Agent) -> None:
    # What follows waits for the answer, as it does in the runtime's driver.
    stuck_until_s = agent.host.memory_stuck_until_s
    agent.hold(agent.draw.uniform(*_READ_S), lambda: _inspect(world, agent, effect), stuck_until_s)


@carry_out.register(DiscardOtherIterations)
def _(effect: DiscardOtherIterations, _: Surroundings, agent: Agent) -> None:
    for replica in agent.host.memory.values():
        replica.keep_only(effect.iteration)


@carry_out.register(Forget)
def _(_: Forget, world: Surroundings, agent: Agent) -> None:
    world.monitor.forgets(agent)
    agent.host.memory.clear()


@carry_out.register(StartTrainers)
def _(effect: StartTrainers, world: Surroundings, agent: Agent) -> None:
    generation, machine = effect.plan.generation, effect.machine
    for rank in world.spec.ranks_held_by(machine):
        agent.host.memory.setdefault(rank, Replica(world.spec.buffers_of(machine, rank)))
    for rank in world.spec.ranks_of(machine):
        group = world.group((generation, effect.plan.rendezvous))
        trainer = SimulatedTrainer(
            *(world, agent, group, rank, machine, generation),
            stays=effect.plan.in_place and rank in agent.parked,
            is_built_alone=effect.plan.in_place,
        )
        agent.trainers[rank] = trainer
        trainer.begin()
    agent.parked = frozenset()


@carry_out.register(Verify)
def _(effect: Verify, _: Surroundings, agent: Agent) -> None:
    _begin(agent, _READ_S, lambda: _verify(agent, effect))


@carry_out.register(Fetch)
def _(effect: Fetch, world: Surroundings, agent: Agent) -> None:
    def step(span_s: tuple[float, float], what: Callable[[], None]) -> None:
        _begin_fetch(agent, effect, span_s, what)

    def end(span_s: tuple[float, float], what: Callable[[], None]) -> None:
        _begin(agent, span_s, what)

    step(_CONNECT_S, PartFetch(world, agent, effect, step, end).start)


@carry_out.register(Offer)
def _(effect: Offer, _: Surroundings, agent: Agent) -> None:
    agent.offers[effect.rank] = effect
    if effect.rank in agent.trainers:
        agent.trainers[effect.rank].load()


@carry_out.register(StopFetching)
def _(effect: StopFetching, _: Surroundings, agent: Agent) -> None:
    agent.fetches_no_more = effect.generation


@carry_out.register(Redundant)
def _(effect: Redundant, _: Surroundings, agent: Agent) -> None:
    agent.redundant_generation = effect.generation
    for group in {id(t.group): t.group for t in agent.trainers.values()}.values():
        group.redundant(agent)


@carry_out.register(Finalise)
def _(effect: Finalise, _: Surroundings, agent: Agent) -> None:
    # Not that of the job: a trainer may say that it has finished, and have left.
    reached = min(trainer.agreed or 0 for trainer in agent.trainers.values())
    _begin(agent, _READ_S, lambda: agent.see(Finalised(effect.generation, reached)))


@carry_out.register(Persist)
def _(effect: Persist, world: Surroundings, agent: Agent) -> None:
    agent.persist = effect
    persist_parts(world, agent, effect.generation)


@carry_out.register(Hold)
def _(effect: Hold, _: Surroundings, agent: Agent) -> None:
    agent.hold_asked = effect.generation


@carry_out.register(Log)
def _(_: Log, __: Surroundings, ___: Agent) -> None:
    """Nobody reads a simulated agent's log."""


def _begin(agent: Agent, span_s: tuple[float, float], what: object) -> None:
    """Do something in the background, unless it is given up meanwhile."""
    agent.later(agent.draw.uniform(*span_s) * agent.host.slowness, _end, agent, agent.work, what)


def _end(agent: Agent, work: int, what: object) -> None:
    if work == agent.work and callable(what):
        what()


def _begin_fetch(
    agent: Agent, effect: Fetch, span_s: tuple[float, float], step: Callable[[], None]
) -> None:
    """Do a step of a fetch in the background, unless what it fetches is wanted no more."""

    def unless_stopped() -> None:
        if agent.fetches_no_more != effect.generation:
            step()

    _begin(agent, span_s, unless_stopped)


# ---- memory --------------------------------------------------------------------------------------


def _inspect(world: Surroundings, agent: Agent, effect: Inspect) -> None:
    if agent.host.lacks_memory and not agent.host.memory:
        agent.see(MemoryRefused(effect.generation, "no memory"))
        return
    held = set(world.spec.ranks_held_by(effect.machine))
    for rank, replica in list(agent.host.memory.items()):
        wanted = world.spec.buffers_of(effect.machine, rank) if rank in held else 0
        if not 0 < wanted <= len(replica.headers):
            del agent.host.memory[rank]
    holdings: dict[int, tuple[int, ...]] = {}
    for rank, replica in sorted(agent.host.memory.items()):
        if effect.thorough:
            replica.read_through()
        offered = replica.offered()
        if offered:
            holdings[rank] = tuple(sorted(offered))
    late = agent.draw.random() < _STORAGE_LATE or _is_silent(world, agent)
    persistent = None if late else world.storage.complete(agent.name)
    world.monitor.inspected(agent, effect.generation, holdings, persistent)
    world.meetings += 1
    rendezvous = f"{agent.incarnation}:{world.meetings}"
    parked = tuple(sorted(agent.parked))
    agent.see(Inspected(effect.generation, holdings, persistent, rendezvous, effect.asked, parked))
    if late:
        _begin(agent, _STORAGE_S, lambda: _read_storage(world, agent, effect))


def _is_silent(world: Surroundings, agent: Agent) -> bool:
    return world.now_s < agent.host.storage_silent_until_s


def _read_storage(world: Surroundings, agent: Agent, effect: Inspect) -> None:
    if _is_silent(world, agent):
        _begin(agent, _STORAGE_S, lambda: _read_storage(world, agent, effect))
        return
    persistent = world.storage.complete(agent.name)
    world.monitor.storage_read(agent, effect.generation, persistent)
    agent.see(StorageRead(effect.generation, persistent))


def _verify(agent: Agent, effect: Verify) -> None:
    replica = agent.host.memory[effect.rank]
    index = replica.find(effect.iteration)
    intact = index is not None and replica.is_intact(index)
    if index is not None and not intact:
        replica.mark_corrupt(index)
    agent.see(Verified(effect.generation, effect.rank, intact))


# ---- peers ---------------------------------------------------------------------------------------


@carry_out.register(PingPeers)
def _(effect: PingPeers, world: Surroundings, agent: Agent) -> None:
    def answered() -> None:
        known = {}
        for machine, address in sorted(effect.addresses.items()):
            peer = peer_at(world, agent, address)
            if peer is not None:
                plan = peer.worker.plan
                known[machine] = plan.generation if plan is not None else 0
        agent.see(PeersAnswered(known))

    agent.later(agent.draw.uniform(*_PING_S), answered)

"""How a machine's parts come to persistent storage, and when its agent says that they count."""

from __future__ import annotations

from castor_policy.agents.effects import Persist
from castor_policy.agents.events import PersistEnded
from castor_sim.explore.roles import Agent
from castor_sim.explore.surroundings import Surroundings

_LOOK_EVERY_S = 0.3  # whether all machines' shares are there
_LOOKS = 10


def persist_parts(world: Surroundings, agent: Agent, generation: int) -> None:
    """Write a machine's parts to storage if they are wanted and complete."""
    wanted = agent.persist
    if wanted is None or wanted.generation != generation:
        return
    mine = [trainer for trainer in agent.trainers.values() if trainer.generation == generation]
    if any((trainer.agreed or 0) < wanted.iteration for trainer in mine):
        return
    agent.persist = None
    for trainer in mine:
        replica = agent.host.memory[trainer.rank]
        index = replica.find(wanted.iteration)
        # Announced too late, or flipped meanwhile: this iteration never becomes complete.
        if index is not None and replica.is_intact(index):
            key, line = (wanted.iteration, generation), world.truth.line(wanted.iteration)
            world.storage.write(agent.name, key, trainer.rank, replica.chunks(index), line)
    if any(trainer.holds for trainer in mine):
        agent.later(_LOOK_EVERY_S, _look, world, agent, wanted, _LOOKS)


def _look(world: Surroundings, agent: Agent, wanted: Persist, looks: int) -> None:
    """Say whether the whole checkpoint counts, once it does, or after so many looks."""
    if world.storage.has(wanted.iteration, wanted.generation):
        agent.see(PersistEnded(wanted.iteration, "", everywhere=True))
    elif looks:
        agent.later(_LOOK_EVERY_S, _look, world, agent, wanted, looks - 1)
    else:
        failure = "not all machines wrote their shares"
        agent.see(PersistEnded(wanted.iteration, failure, in_vain=True))

"""Which replicas were lost since an iteration was last whole everywhere (invariant 4)."""

from __future__ import annotations

from castor_policy.agents.plan import Plan
from castor_policy.checkpoint_memory import fills_own_last
from castor_sim.explore.checkpoint_model import Replica
from castor_sim.explore.roles import Scene


class LostReplicas:
    """Replicas, by place and rank, that no recovery needs to find.

    Args:
        scene: around them.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._lost: set[tuple[int, int]] = set()

    @property
    def places(self) -> list[int]:
        """The places that lost one."""
        return sorted({place for place, _ in self._lost})

    def clear(self) -> None:
        """Begin anew: an iteration is whole everywhere."""
        self._lost.clear()

    def add(self, place: int, rank: int) -> None:
        """Count one as lost."""
        self._lost.add((place, rank))

    def lose(self, place: int) -> None:
        """Count all that a place holds as lost."""
        self._lost.update((place, rank) for rank in self._scene.spec.ranks_held_by(place))

    def lose_behind(self, plan: Plan) -> None:
        """Count own replicas of one buffer as lost that do not hold what is loaded."""
        for place in range(len(plan.agents)):
            for rank in self._scene.spec.ranks_of(place):
                replica = self._only_buffer(plan, place, rank)
                if replica is not None and replica.find(plan.iteration) is None:
                    self.add(place, rank)

    def leave_each_shard(self, plan: Plan, newest: int) -> bool:
        """Whether every shard has a replica left, to go back to `newest` or to what came after it.

        Args:
            plan: who fills which place.
            newest: the iteration that was last whole everywhere.
        """
        spec = self._scene.spec
        return all(
            any(
                all(self._is_left(plan, place, rank, newest) for rank in spec.ranks_of(shard))
                for place in row
            )
            for shard, row in enumerate(spec.replicas)
        )

    def _is_left(self, plan: Plan, place: int, rank: int, newest: int) -> bool:
        if (place, rank) in self._lost:
            return False
        # An own one of a single buffer may be ahead of others: no matter where fewer than m
        # machines are lost (docs/invariants.md, less memory); with m, what was whole may be gone.
        own = self._only_buffer(plan, place, rank)
        few = len(self.places) < len(self._scene.spec.replicas[place])
        return own is None or few or own.find(newest) is not None

    def _only_buffer(self, plan: Plan, place: int, rank: int) -> Replica | None:
        """Return a place's replica of a rank, if it has a single buffer."""
        agent = self._scene.agents.get(plan.agents[place])
        replica = agent.host.memory.get(rank) if agent is not None else None
        if replica is None or not fills_own_last(len(replica.headers)):
            return None
        return replica

"""The invariants, checked after every event. DESIGN.md numbers the first seven.

The monitor sees all of the world, the agents only what they are told: it knows what is stored
where, which root's term it is, and which iteration was last whole in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from castor_policy.agents.documents import Phase, Plan, root_key
from castor_policy.recovery import Tier
from castor_sim.explore.checkpoint_model import Chunk, Replica, part_of, state_after
from castor_sim.explore.schedule import Fault

if TYPE_CHECKING:
    from castor_sim.explore.agent import SimulatedAgent
    from castor_sim.explore.training import Trainer
    from castor_sim.explore.world import World

INVARIANTS = {
    1: "only complete shards are offered for recovery",
    2: "what is being sent is never written meanwhile",
    3: "a recovered run continues with exactly the state that it had",
    4: "fewer than m machines lost at once cost no more than the iteration in flight",
    5: "every rank loads the same iteration, and no older one than storage has",
    6: "only the root of the newest term writes, and the plan never goes back",
    7: "a corrupt part is never loaded",
    8: "at most one set of trainers of a machine's place makes progress",
    9: "a machine whose place was given away makes no progress in the newer generation",
    10: "an outage of the store alone stops no trainer and begins no generation",
    11: "once faults stop, the job reaches its last iteration",
}
"""What must hold, by number."""

_PHASES = (Phase.GATHER, Phase.LOAD, Phase.FINISHED, Phase.FAILED)


class Violation(Exception):  # noqa: N818 - what is violated is no error of this program
    """An invariant does not hold.

    Attributes:
        invariant: its number in `INVARIANTS`.
        found: what was seen.
    """

    def __init__(self, invariant: int, found: str) -> None:
        super().__init__(f"invariant {invariant} ({INVARIANTS[invariant]}): {found}")
        self.invariant = invariant
        self.found = found


class Monitor:
    """Watches over one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._plan: Plan | None = None
        self._loads: dict[int, Plan] = {}
        self._loaded: dict[int, tuple[int, str]] = {}
        self._progress: dict[tuple[int, int], Trainer] = {}
        self._whole_iteration: int | None = None
        self._lost: set[tuple[int, int]] = set()
        self._stored: set[int] = set()
        self._persisted = 0

    # ---- what the world tells ------------------------------------------------------------------

    def planned(self, plan: Plan) -> None:
        """Check a plan that was written (invariants 4, 5 and 6)."""
        before, self._plan = self._plan, plan
        term = self._term()
        if plan.term != term:
            raise Violation(6, f"a plan of term {plan.term} was written in term {term}")
        if before is not None and _position(plan) < _position(before):
            raise Violation(6, f"the plan went back from {_name(before)} to {_name(plan)}")
        if before is not None:
            for place, name in enumerate(plan.agents):
                if before.agents[place] and name != before.agents[place]:
                    self._lose(place)
        if plan.phase == Phase.GATHER:
            if before is None or before.generation < plan.generation:
                self._persisted = max(self._world.storage.complete(), default=0)
        elif plan.phase == Phase.LOAD:
            self._loads[plan.generation] = plan
            self._check_iteration(plan)
            self._stored.add(plan.iteration)
        elif plan.phase == Phase.FAILED:
            raise Violation(11, f"the root gave the job up: {plan.reason}")

    def inspected(self, agent: SimulatedAgent, holdings: Mapping[int, Sequence[int]]) -> None:
        """Check what a machine offers (invariant 1)."""
        for rank, iterations in holdings.items():
            for iteration in iterations:
                if agent.host.memory[rank].find(iteration) is None:
                    what = f"{agent.name} offers rank {rank} at iteration {iteration}"
                    raise Violation(1, f"{what}, which is not complete there")

    def copied(self, sender: Trainer, receiver: Trainer, *, untouched: bool) -> None:
        """Check that neither the state nor the buffer changed while a part travelled (2)."""
        if not untouched:
            what = f"rank {sender.rank} on its way to {receiver.agent.name}"
            raise Violation(2, f"{what} was overwritten at one of its ends")

    def stored(self, agent: SimulatedAgent, rank: int, replica: Replica, index: int) -> None:
        """Check a part that has become complete (invariant 2)."""
        iteration = replica.headers[index].iteration
        if replica.is_intact(index) and replica.chunks(index) != part_of(
            state_after(rank, iteration)
        ):
            what = f"rank {rank} at iteration {iteration} on {agent.name}"
            raise Violation(2, f"{what} is complete but holds another state")
        self._stored.add(iteration)

    def loaded(self, trainer: Trainer, tier: str, part: list[Chunk]) -> None:
        """Check what a trainer has loaded (invariants 3, 5 and 7)."""
        who = f"rank {trainer.rank} of generation {trainer.generation}"
        if part != part_of(state_after(trainer.rank, trainer.iteration)):
            # Digests that match stand for a state that was stored wrong, others for a broken byte.
            invariant = 3 if len({state for state, _ in part}) == 1 else 7
            raise Violation(invariant, f"{who} loaded a wrong state for {trainer.iteration}")
        source = str(tier) if tier in (Tier.STORAGE, Tier.SCRATCH) else "memory"
        first = self._loaded.setdefault(trainer.generation, (trainer.iteration, source))
        if first != (trainer.iteration, source):
            raise Violation(5, f"{who} loaded {trainer.iteration} from {source}, others {first}")

    def collective_ended(self, generation: int) -> None:
        """Check that no older generation goes on (8); a rank that wakes may end what it began."""
        newest = max(self._loads, default=0)
        if generation < newest:
            raise Violation(8, f"generation {generation} goes on while {newest} trains")

    def iteration_ended(self, trainer: Trainer) -> None:
        """Check who makes progress, and to which state (invariants 3, 8 and 9)."""
        who = f"rank {trainer.rank} of generation {trainer.generation} on {trainer.agent.name}"
        if trainer.state != state_after(trainer.rank, trainer.iteration):
            raise Violation(3, f"{who} came to a wrong state at iteration {trainer.iteration}")
        known = self._progress.setdefault((trainer.generation, trainer.rank), trainer)
        if known is not trainer:
            raise Violation(8, f"{who} makes progress beside {known.agent.incarnation}")
        plan = self._loads.get(trainer.generation)
        if plan is None or plan.incarnations[trainer.machine] != trainer.agent.incarnation:
            raise Violation(9, f"{who} makes progress in a place that is not its own")

    def memory_lost(self, agent: SimulatedAgent) -> None:
        """Take in that a machine's memory is gone."""
        for place, name in enumerate(self._plan.agents if self._plan is not None else ()):
            if name == agent.name:
                self._lose(place)

    def flipped(self, place: int, rank: int) -> None:
        """Take in that a stored part is spoilt."""
        self._lost.add((place, rank))

    def agent_at(self, place: int) -> SimulatedAgent | None:
        """Return the agent that the plan gives a place to, in its present life."""
        name = self._plan.agents[place] if self._plan is not None else ""
        return self._world.agents.get(name)

    # ---- after every event ---------------------------------------------------------------------

    def check(self) -> None:
        """See whether an iteration has become whole: then all losses before it are made good."""
        while self._stored:
            iteration = self._stored.pop()
            if self._is_whole(iteration):
                self._whole_iteration = max(iteration, self._whole_iteration or 0)
                self._lost.clear()

    def is_over(self) -> bool:
        """Whether the job has finished and every agent has ended."""
        finished = self._plan is not None and self._plan.phase == Phase.FINISHED
        return finished and not self._world.live()

    def check_time(self, limit_s: float) -> None:
        """Check that the job is not late (invariant 11)."""
        if self._world.now_s <= limit_s:
            return
        plan = _name(self._plan) if self._plan is not None else "no plan"
        states = [
            f"{agent.incarnation} {agent.worker.report.state} "
            f"generation {agent.worker.report.generation}"
            for agent in self._world.live()
        ]
        raise Violation(11, f"not finished at {limit_s:.0f} s: {plan}; {'; '.join(states)}")

    def check_end(self, faults: Sequence[Fault]) -> None:
        """Check how it ended: exit codes (11), and what outages of the store did (10)."""
        for name, agent in sorted(self._world.agents.items()):
            if agent.exited not in (0, None):
                raise Violation(11, f"{name} ended with code {agent.exited}")
        generation = self._plan.generation if self._plan is not None else 0
        if {fault.kind for fault in faults} <= {"store"} and generation != 1:
            raise Violation(10, f"it took {generation} generations")

    # ---- what must hold ------------------------------------------------------------------------

    def _check_iteration(self, plan: Plan) -> None:
        spec, newest = self._world.spec, self._whole_iteration
        if plan.iteration < self._persisted:
            raise Violation(5, f"{_name(plan)} though storage has iteration {self._persisted}")
        survived = all(
            any(
                all((place, rank) not in self._lost for rank in spec.ranks_of(shard))
                for place in row
            )
            for shard, row in enumerate(spec.replicas)
        )
        if survived and newest is not None and plan.iteration < newest:
            lost = sorted({place for place, _ in self._lost})
            raise Violation(
                4,
                f"{_name(plan)} goes back to {plan.iteration} from {newest}; since that was whole "
                f"machines {lost} were lost, and every shard has a replica left",
            )
        self._whole_iteration = min(plan.iteration, newest) if newest is not None else None

    def _is_whole(self, iteration: int) -> bool:
        """Whether every replica of this iteration is where it belongs."""
        plan, spec = self._plan, self._world.spec
        if plan is None or plan.phase != Phase.LOAD:
            return False
        for place, name in enumerate(plan.agents):
            agent = self._world.agents.get(name)
            if agent is None:
                return False
            for rank in spec.ranks_held_by(place):
                replica = agent.host.memory.get(rank)
                index = replica.find(iteration) if replica is not None else None
                if replica is None or index is None or not replica.is_intact(index):
                    return False
        return True

    def _lose(self, place: int) -> None:
        self._lost.update((place, rank) for rank in self._world.spec.ranks_held_by(place))

    def _term(self) -> int:
        key = root_key(self._world.spec.job)
        found, _ = self._world.store.model.get_prefix(key, self._world.now_s)
        return found[0].create_revision if found else 0


def _position(plan: Plan) -> tuple[int, int]:
    return plan.generation, min(2, _PHASES.index(Phase(plan.phase)))


def _name(plan: Plan) -> str:
    return f"generation {plan.generation} {plan.phase.upper()} {plan.iteration} from {plan.tier}"

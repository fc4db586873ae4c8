"""The invariants, checked after every event.

The monitor sees all of the world, the agents only what they are told: it knows what is stored
where, which root's term it is, and which iteration was last whole in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from castor_policy.agents.agent_report import State
from castor_policy.agents.exit_codes import REFUSED
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.wish import Wish
from castor_policy.recovery import Tier
from castor_sim.explore.asked import Asked
from castor_sim.explore.attempts import Attempts
from castor_sim.explore.blame import Blame
from castor_sim.explore.checkpoint_model import Chunk, Replica, part_of
from castor_sim.explore.degraded import gives_up_own
from castor_sim.explore.given_back import check_given_back, check_needless
from castor_sim.explore.invariants import Violation
from castor_sim.explore.lost_replicas import LostReplicas
from castor_sim.explore.names import Names
from castor_sim.explore.outages import Outages
from castor_sim.explore.plan_grounds import Gathered, check_gathered, name_of
from castor_sim.explore.roles import Agent, Scene, Trainer
from castor_sim.explore.schedule import Fault

_PHASES = (Phase.GATHER, Phase.LOAD, Phase.FINISHED, Phase.FAILED, Phase.STOPPED)


_LATE = 1e-6  # seconds that two sums of the same times may differ by

ISOLATED_S = 8.0
"""A machine cut off from all for so long must have stopped: two leases, and some answers' times."""


class Monitor:
    """Watches over one scene."""

    def __init__(self, scene: Scene, faults: Sequence[Fault]) -> None:
        self._scene = scene
        self._plan: Plan | None = None
        self._loads: dict[int, Plan] = {}
        self._loaded: dict[int, tuple[int, str]] = {}
        self._progress: dict[tuple[int, int], Trainer] = {}
        self._whole_iteration: int | None = None
        self._lost = LostReplicas(scene)
        self._stored: set[int] = set()
        self._lacked: dict[int, int] = {}
        self._gathered: dict[tuple[int, str], Gathered] = {}
        self.names = Names(scene)
        self.blame = Blame(fault.kind for fault in faults)
        self._outages = Outages(scene, faults, self.blame)
        self._has_ended = False
        self._awaited: Agent | None = None
        self._trains = 0
        self._attempts = Attempts(scene)
        self._asked = Asked(scene, faults)

    # ---- what the world tells ------------------------------------------------------------------

    def planned(self, plan: Plan) -> None:
        """Check a plan that was written (invariants 4, 5 and 6)."""
        before, self._plan, self._has_ended = self._plan, plan, plan.is_over
        self._check_term(plan)
        if self._is_written_again(plan) or self._outages.forgets(before):
            return
        if before is not None and _position(plan) < _position(before):
            raise Violation(6, f"the plan went back from {name_of(before)} to {name_of(plan)}")
        self._asked.planned(plan, self._progress)
        for place, had in enumerate(before.agents if before is not None else ()):
            if had not in ("", plan.agents[place]):
                self._lost.lose(place)
        if plan.phase == Phase.GATHER:
            failed = before is not None and before.generation < plan.generation
            if failed and not plan.asked_for:
                self._attempts.begun(plan)
                self.blame.check(plan)
                self._outages.begun(plan)
        elif plan.phase == Phase.LOAD:
            self._loads[plan.generation] = plan
            self._check_sources(plan)
            self._check_iteration(plan)
            self._lost.lose_behind(plan)
            self._stored.add(plan.iteration)
        elif plan.phase == Phase.FAILED:
            self._attempts.check_given_up(plan, begun_in_vain=self._begun_in_vain())
        elif plan.phase == Phase.FINISHED:
            check_given_back(self._scene.live(), plan)

    def _check_term(self, plan: Plan) -> None:
        term = self._scene.root_term()
        if plan.term != term:
            raise Violation(6, f"a plan of term {plan.term} was written in term {term}")

    def _is_written_again(self, plan: Plan) -> bool:
        """Whether it was loaded before: a store that has lost it gets it back, and all goes on."""
        loaded = self._loads.get(plan.generation)
        return loaded is not None and replace(plan, term=loaded.term) == loaded

    def inspected(
        self,
        agent: Agent,
        generation: int,
        holdings: Mapping[int, Sequence[int]],
        persistent: Sequence[int] | None,
    ) -> None:
        """Check what a machine offers (invariants 1 and 14); storage may not have answered yet."""
        foreign = ""
        for rank, iterations in holdings.items():
            replica = agent.host.memory[rank]
            for iteration in iterations:
                what = f"{agent.name} offers rank {rank} at iteration {iteration}"
                index = replica.find(iteration)
                if index is None:
                    raise Violation(1, f"{what}, which is not complete there")
                states = {state for state, _ in replica.chunks(index)}
                wrong = len(states) == 1 and not self._is_right(replica, index, rank)
                if wrong or replica.headers[index].generation < replica.given_up:
                    foreign = f"{what}, which is of another run or was given up"
        read = None if persistent is None else frozenset(persistent)
        self._gathered[generation, agent.incarnation] = Gathered(dict(holdings), read, foreign)

    def storage_read(self, agent: Agent, generation: int, persistent: Sequence[int]) -> None:
        """Take in what storage said after an inspection that did not wait for it."""
        key = generation, agent.incarnation
        self._gathered[key] = replace(self._gathered[key], persistent=frozenset(persistent))

    def forgets(self, agent: Agent) -> None:
        """Check that no trainer runs on memory that is given back (9), and nobody needs it (17)."""
        check_needless(agent, self._loads)
        lives = [agent, *self._scene.on(agent.host)]
        if any(trainer.alive for life in lives for trainer in life.trainers.values()):
            raise Violation(9, f"{agent.incarnation} forgets while its trainers run")

    def wished(self, key: str, wish: Wish | None, stored: Collection[int]) -> None:
        """Check what becomes of a wish (23); see `Asked.changed`."""
        self._asked.changed(key, wish, self._plan, stored)

    def data_lost(self) -> None:
        """Take in that the store has lost its data, and with them who holds which name."""
        self._outages.data_lost(self._plan)
        self.names.data_lost()
        self._asked.data_lost()

    def renewed(self, agent: Agent) -> None:
        """Check how long an agent believes in its lease (invariant 12)."""
        ahead_s = agent.worker.renewed_s - agent.lease_counts_from_s
        if ahead_s > _LATE:
            what = f"{agent.incarnation} counts its lease from {ahead_s:.3f} s after"
            raise Violation(12, f"{what} the store does")

    def completed(self, generation: int, iteration: int) -> None:
        """Take in that all replicas of an iteration are in memory."""
        if self._plan is not None:
            self._attempts.completed(iteration, is_current=generation == self._plan.generation)

    def copied(self, sender: Trainer, receiver: Trainer, *, untouched: bool) -> None:
        """Check that neither the state nor the buffer changed while a part travelled (2)."""
        if not untouched:
            what = f"rank {sender.rank} on its way to {receiver.agent.name}"
            raise Violation(2, f"{what} was overwritten at one of its ends")

    def fetched(self, agent: Agent, rank: int, *, is_alone: bool) -> None:
        """Check that nobody else has taken the buffer that a fetch writes (2)."""
        if not is_alone:
            raise Violation(2, f"rank {rank} is fetched into a buffer of {agent.name} in use")

    def turns(self, trainer: Trainer) -> None:
        """Take in that an only own copy is written over from now on."""
        if self._plan is not None and gives_up_own(self._scene, self._plan, trainer):
            self._lost.add(trainer.machine, trainer.rank)

    def stored(self, agent: Agent, rank: int, replica: Replica, index: int) -> None:
        """Check a part that has become complete (invariant 2)."""
        header = replica.headers[index]
        iteration = header.iteration
        if header.generation < self._scene.truth.newest:
            return  # of a rank that was paused; what matters is whether it is ever offered
        if replica.is_intact(index) and not self._is_right(replica, index, rank):
            what = f"rank {rank} at iteration {iteration} on {agent.name}"
            raise Violation(2, f"{what} is complete but holds another state")
        self._stored.add(iteration)

    def loaded(self, trainer: Trainer, tier: str, part: list[Chunk]) -> None:
        """Check what a trainer has loaded (invariants 3, 5 and 7)."""
        who = f"rank {trainer.rank} of generation {trainer.generation}"
        if not self._is_right_part(trainer, tier, part):
            # Digests that match stand for a state that was stored wrong, others for a broken byte.
            invariant = 3 if len({state for state, _ in part}) == 1 else 7
            raise Violation(invariant, f"{who} loaded a wrong state for {trainer.iteration}")
        source = str(tier) if tier in (Tier.STORAGE, Tier.SCRATCH) else "memory"
        first = self._loaded.setdefault(trainer.generation, (trainer.iteration, source))
        if first != (trainer.iteration, source):
            raise Violation(5, f"{who} loaded {trainer.iteration} from {source}, others {first}")

    def collective_ended(self, generation: int) -> None:
        """Check that no older generation goes on (8); a rank that wakes may end what it began."""
        if generation > self._trains:
            self._trains = generation
            self._give_up_memory(generation)
        newest = max(self._loads, default=0)
        if generation < newest:
            raise Violation(8, f"generation {generation} goes on while {newest} trains")

    def _give_up_memory(self, generation: int) -> None:
        """Take in that what machines without a place hold is of the past from now on."""
        members = self._loads[generation].agents if generation in self._loads else ()
        training = {id(self._scene.agents[name].host) for name in members}
        for host in self._scene.hosts:
            if id(host) not in training:
                for replica in host.memory.values():
                    replica.given_up = generation

    def iteration_ended(self, trainer: Trainer) -> None:
        """Check who makes progress, and to which state (invariants 3, 8 and 9)."""
        who = f"rank {trainer.rank} of generation {trainer.generation} on {trainer.agent.name}"
        ahead = trainer.iteration - trainer.kept
        if ahead > self._scene.spec.traffic.checkpoint_every:
            raise Violation(4, f"{who} is {ahead} iterations past its last checkpoint")
        counts = self._scene.truth.trained(trainer.iteration, trainer.generation)
        right = self._scene.truth.state(trainer.rank, trainer.iteration)
        if counts and trainer.state != right:
            raise Violation(3, f"{who} came to a wrong state at iteration {trainer.iteration}")
        known = self._progress.setdefault((trainer.generation, trainer.rank), trainer)
        if known is not trainer:
            raise Violation(8, f"{who} makes progress beside {known.agent.incarnation}")
        plan = self._loads.get(trainer.generation)
        if plan is None or plan.incarnations[trainer.machine] != trainer.agent.incarnation:
            raise Violation(9, f"{who} makes progress in a place that is not its own")

    def memory_lost(self, agent: Agent) -> None:
        """Take in that a machine's memory is gone."""
        for place, name in enumerate(self._plan.agents if self._plan is not None else ()):
            if name == agent.name:
                self._lost.lose(place)

    def flipped(self, place: int, rank: int) -> None:
        """Take in that a stored part is spoilt."""
        self._lost.add(place, rank)

    def phase(self) -> str:
        """Return the phase that the job is in; "" before its first plan."""
        return str(self._plan.phase) if self._plan is not None else ""

    def agent_at(self, place: int) -> Agent | None:
        """Return the agent that the plan gives a place to, in its present life."""
        name = self._plan.agents[place] if self._plan is not None else ""
        return self._scene.agents.get(name)

    # ---- after every event ---------------------------------------------------------------------

    def check(self) -> None:
        """See whether an iteration has become whole: then all losses before it are made good."""
        while self._stored:
            iteration = self._stored.pop()
            if self._is_whole(iteration):
                self._whole_iteration = max(iteration, self._whole_iteration or 0)
                self._lost.clear()

    def is_over(self) -> bool:
        """Whether the job has ended, and every agent with it."""
        return self._outages.is_forgotten or (self._has_ended and not self._is_awaited())

    def _is_awaited(self) -> bool:
        """Whether an agent is still to end; the one that was found last is asked first."""
        if self._awaited is None or not self._awaited.alive or self._awaited.is_stuck:
            live = self._scene.live()
            self._awaited = next((agent for agent in live if not agent.is_stuck), None)
        return self._awaited is not None

    def check_time(self, limit_s: float) -> None:
        """Say that the job is late (invariant 11)."""
        plan = name_of(self._plan) if self._plan is not None else "no plan"
        states = [
            f"{agent.incarnation} {agent.worker.report.state} "
            f"generation {agent.worker.report.generation}"
            for agent in self._scene.live()
        ]
        raise Violation(11, f"not finished at {limit_s:.0f} s: {plan}; {'; '.join(states)}")

    def check_end(self) -> None:
        """Check how it ended: exit codes (11), and what outages of the store did (10)."""
        if self._outages.is_forgotten and not self._has_ended:
            return  # it begins anew, as any job does
        codes = self._asked.codes(self.phase() or Phase.FINISHED)
        for name, agent in sorted(self._scene.agents.items()):
            refused = agent.exited == REFUSED and self.names.may_be_refused(name)
            if agent.exited not in codes and not refused:
                raise Violation(11, f"{name} ended with code {agent.exited}")
        self._outages.check(self._plan)

    # ---- what must hold ------------------------------------------------------------------------

    def check_isolated(self, agent: Agent, moment: object) -> None:
        """Check that a machine that was cut off for so long has stopped its trainers (9)."""
        if not agent.alive or agent.moment() != moment or self._scene.spec.machines < 2:
            return  # it was paused, or its clock ran at another rate: it cannot know
        if agent.worker.report.state in (State.FAILED, State.FINISHED):
            return  # none of its generation's trainers goes on anywhere
        if any(trainer.alive for trainer in agent.trainers.values()):
            what = f"{agent.incarnation} has trainers {ISOLATED_S:.0f} s after it was cut off"
            raise Violation(9, f"{what} from the store and from every peer")

    def _begun_in_vain(self) -> bool:
        """Whether the script failed twice from scratch, without an iteration in between."""
        newest = sorted(self._loads)[-2:]
        ended = {generation for generation, _ in self._progress}
        return len(newest) == 2 and not any(
            self._loads[generation].iteration or generation in ended for generation in newest
        )

    def _check_sources(self, plan: Plan) -> None:
        """Check a plan against what was gathered in its own generation (1, 5 and 13)."""
        gathered = []
        for place, life in enumerate(plan.incarnations):
            found = self._gathered.get((plan.generation, life))
            agent = self._scene.agents.get(plan.agents[place])
            what = f"{name_of(plan)} before {life}, machine {place},"
            if found is None:
                raise Violation(13, f"{what} was inspected in this generation")
            if agent is not None and agent.incarnation == life and agent.trainers:
                raise Violation(13, f"{what} had stopped its trainers")
            if plan.loaded and plan.agents[place] not in plan.loaded:
                found = Gathered({}, found.persistent)
            if found.foreign:
                raise Violation(14, f"{name_of(plan)} rests on what {found.foreign}")
            gathered.append(found)
        check_gathered(self._scene.spec, plan, gathered)

    def _check_iteration(self, plan: Plan) -> None:
        newest = self._whole_iteration
        if (
            newest is not None
            and plan.iteration < newest
            and self._lost.leave_each_shard(plan, newest)
        ):
            raise Violation(
                4,
                f"{name_of(plan)} goes back to {plan.iteration} from {newest}; since that was "
                f"whole machines {self._lost.places} were lost, and every shard has a replica left",
            )
        self._whole_iteration = min(plan.iteration, newest) if newest is not None else None

    def _is_right(self, replica: Replica, index: int, rank: int) -> bool:
        """Whether an intact replica holds what training came to."""
        state = self._scene.truth.state(rank, replica.headers[index].iteration)
        return state is not None and replica.chunks(index) == part_of(state)

    def _is_right_part(self, trainer: Trainer, tier: str, part: list[Chunk]) -> bool:
        truth = self._scene.truth
        if tier == Tier.STORAGE:
            line = self._scene.truth.switch_of(trainer.generation)
            return line is not None and part == part_of(truth.state_on(line, trainer.rank))
        state = truth.state(trainer.rank, trainer.iteration)
        return state is not None and part == part_of(state)

    def _is_whole(self, iteration: int) -> bool:
        """Whether every replica of this iteration is where it belongs."""
        plan, spec = self._plan, self._scene.spec
        if plan is None or plan.phase != Phase.LOAD:
            return False
        # The one that lacked it last is asked first: most often it still does.
        first, places = self._lacked.get(iteration, 0), len(plan.agents)
        for place in ((first + step) % places for step in range(places)):
            self._lacked[iteration] = place
            agent = self._scene.agents.get(plan.agents[place])
            if agent is None:
                return False
            for rank in spec.ranks_held_by(place):
                replica = agent.host.memory.get(rank)
                index = replica.find(iteration) if replica is not None else None
                if replica is None or index is None or not replica.is_intact(index):
                    return False
        return True


def _position(plan: Plan) -> tuple[int, int]:
    return plan.generation, min(2, _PHASES.index(Phase(plan.phase)))

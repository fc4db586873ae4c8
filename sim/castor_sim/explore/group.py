"""The trainers of a generation: iterations in lock-step over all ranks, and a capture after each.

The order of steps is the runtime's: update, take a buffer, copy and send chunks, compare digests,
header last, and an all-reduce that makes the iteration agreed. The next update waits for that
(invariant 2). An own replica of one buffer is filled after it, and then the update waits for that.
"""

from __future__ import annotations

from collections import Counter

from castor_policy import checkpoint_memory
from castor_policy.job_options import DEGRADED
from castor_policy.period import is_due
from castor_sim.explore.checkpoint_model import Chunk
from castor_sim.explore.roles import Agent, Trainer
from castor_sim.explore.surroundings import GroupKey, Surroundings
from castor_sim.explore.trainer import BLOCKED_S, OWN_ERROR

ITERATION_S = 0.3
"""Time that an iteration computes for."""

_SKEW_S = (0.0, 0.04)  # between the updates of different ranks
_CHUNK_S = (0.02, 0.15)  # between a part's first chunk and its last
_AGREE_S = (0.001, 0.03)  # until a rank learns of an all-reduce
_NOTICE_S = (0.02, 1.0)  # until a rank sees a dead peer's connection break
_NOTICES = 0.7  # the others hang in the collective
_HEARS = 0.5  # of an agreement that a rank was lost in, others may still hear
_WAITS_FOR_TURN = 50  # so many times a rank that could turn looks whether its machine does

MOST_NOTICES = 16
"""So many chances a rank has to see that peers have gone: as many as matter, of however many."""


class SimulatedGroup:
    """The trainers of one generation, bound together by their collectives."""

    def __init__(self, world: Surroundings, key: GroupKey) -> None:
        self._world = world
        self._generation = key[0]
        self._members: dict[int, Trainer] = {}
        self._needed = world.spec.machines * world.spec.ranks_per_machine
        self._at_iteration: Counter[int] = Counter()  # members that have come so far
        self._captured_still = -1  # a rank whose capture was not over; -1: none
        self._notices: Counter[int] = Counter()  # by rank
        self._may_notice: list[Trainer] | None = None  # by rank; None: to be found anew
        self._computed = False
        self._copies = 0  # of the iteration that is being captured
        self._turns = 0  # own replicas of one buffer that hold it
        self._due = 0  # the newest iteration whose remote replicas are all there
        self._holds = False  # all have agreed to go no further

    def join(self, trainer: Trainer) -> None:
        """Enter the first collective: it begins when all ranks are there."""
        before = self._members.get(trainer.rank)
        if before is not None:
            self._at_iteration[before.iteration] -= 1
        self._members[trainer.rank] = trainer
        self._may_notice = None
        self._at_iteration[trainer.iteration] += 1
        if len(self._members) == self._needed and self._is_whole():
            self._world.note(f"generation {self._generation} trains from {trainer.iteration}")
            if trainer.iteration >= self._world.iterations:
                for member in self._ordered():
                    self._finish(member)
            else:
                self._compute()

    def lost(self, trainer: Trainer) -> None:
        """Let the others find out, or hang."""
        if self._members.get(trainer.rank) is not trainer:
            return
        able = self._ordered() if self._may_notice is None else self._may_notice
        self._may_notice = [
            other
            for other in able
            if other.alive and self._notices.get(other.rank, 0) < MOST_NOTICES
        ]
        for other in self._may_notice:
            draw = other.agent.draw
            if other.agent is not trainer.agent and draw.random() < _NOTICES:
                self._notices[other.rank] += 1
                self._world.after(draw.uniform(*_NOTICE_S), self._notice, other, trainer)

    def _notice(self, trainer: Trainer, lost: Trainer, looks: int = 0) -> None:
        # Nobody hears through a cut that a connection has broken.
        connects = self._world.network.connects(lost.agent.name, trainer.agent.name)
        if not (trainer.can_run() and connects):
            return
        if self._own_last() and trainer.turned < self._due == trainer.capturing:
            mates = trainer.agent.trainers.values()
            if any(mate.turned == self._due for mate in mates):
                trainer.begin_turn()
            elif looks < _WAITS_FOR_TURN:
                self._world.after(BLOCKED_S, self._notice, trainer, lost, looks + 1)
                return
        trainer.lose_peer()

    def _own_last(self) -> bool:
        return checkpoint_memory.fills_own_last(self._world.spec.buffers_of(0, 0))

    def redundant(self, agent: Agent) -> None:
        """Begin captures that waited for the machine's replicas to be settled."""
        for member in self._ordered():
            if member.agent is agent and member.iteration > max(member.captured, member.capturing):
                self._capture(member)

    def _ordered(self) -> list[Trainer]:
        return [self._members[rank] for rank in sorted(self._members)]

    def _is_whole(self) -> bool:
        return all(member.alive for member in self._members.values())

    def _is_blocked(self) -> bool:
        members = self._members.values()
        if not all(member.can_run() for member in members):
            return True
        return self._world.network.cuts_any({member.agent.name for member in members})

    def _compute(self) -> None:
        slowness = max(member.agent.host.slowness for member in self._members.values())
        self._world.after(ITERATION_S * slowness, self._gradients_are_there)

    def _gradients_are_there(self) -> None:
        self._computed = True
        self._update_when_possible()

    def _update_when_possible(self) -> None:
        """Update every rank; the one gate between a capture and the next update."""
        if not self._computed or self._holds:
            return
        if self._is_captured_still() or not self._is_whole():
            return
        if self._is_blocked():
            self._world.after(BLOCKED_S, self._update_when_possible)
            return
        if self._fail_by_the_script(after_the_update=False):
            return
        self._computed = False
        self._copies = self._turns = 0
        self._world.monitor.collective_ended(self._generation)
        for member in self._ordered():
            self._world.after(member.agent.draw.uniform(*_SKEW_S), self._update, member)

    def _is_captured_still(self) -> bool:
        """Whether a rank's capture is not over; the one that was found last is asked first."""
        waited_for = self._members.get(self._captured_still)
        if waited_for is None or waited_for.captured >= waited_for.iteration:
            left = (rank for rank, m in self._members.items() if m.captured < m.iteration)
            self._captured_still = next(left, -1)
        return self._captured_still >= 0

    def _update(self, member: Trainer) -> None:
        if not member.alive:
            return
        if not member.can_run():
            self._world.after(BLOCKED_S, self._update, member)
            return
        member.update()
        if self._members[member.rank] is member:
            self._at_iteration[member.iteration - 1] -= 1
            self._at_iteration[member.iteration] += 1
        if self._fail_by_the_script(after_the_update=True):
            return
        last_one = self._at_iteration[member.iteration] == len(self._members)
        if last_one and member.iteration < self._world.iterations:
            self._compute()
        if self._is_taken(member.iteration):
            self._capture(member)
        else:
            member.captured = member.iteration

    def _is_taken(self, iteration: int) -> bool:
        """Whether a checkpoint is taken of it; of the last one, for it stands for the end."""
        every = self._world.spec.traffic.checkpoint_every
        return is_due(iteration, every) or iteration == self._world.iterations

    def _fail_by_the_script(self, *, after_the_update: bool) -> bool:
        """End a rank whose script fails in this iteration, as it does in every generation."""
        error = self._world.script_error
        if error is None or error.after_the_update != after_the_update:
            return False
        member = self._members.get(error.rank)
        reached = error.iteration - (not after_the_update)
        if member is None or not member.alive or member.iteration < reached:
            return False
        member.end(OWN_ERROR)
        return True

    def _capture(self, member: Trainer) -> None:
        """Begin to copy: what is sent goes where the receiver has begun as well."""
        if self._may_be_fetching(member) and not self._goes_beside(member):
            return
        member.capturing = member.iteration
        spec = self._world.spec
        local = member.rank % spec.ranks_per_machine
        for machine in sorted(spec.shards_held_by(member.machine)):
            is_own = machine == member.machine
            receivers = spec.replicas[machine] if is_own else (member.machine,)
            if is_own and self._own_last():
                receivers = receivers[1:]
            sender = self._members[machine * spec.ranks_per_machine + local]
            for place in receivers:
                receiver = self._members[place * spec.ranks_per_machine + local]
                if sender.capturing == receiver.capturing == member.iteration:
                    self._begin_copy(sender, receiver)

    def _may_be_fetching(self, member: Trainer) -> bool:
        """Whether the member's machine has not settled yet what belongs there."""
        return member.agent.redundant_generation != self._generation

    def _goes_beside(self, member: Trainer) -> bool:
        """Whether a checkpoint is taken though what was loaded is still fetched."""
        degraded = self._world.spec.recovery.redundancy == DEGRADED
        return degraded and member.agreed is not None and member.agreed == member.loaded

    def _begin_copy(self, sender: Trainer, receiver: Trainer) -> None:
        if not (sender.alive and receiver.alive):
            return
        replica = receiver.agent.host.memory[sender.rank]
        beside = sender is not receiver and self._may_be_fetching(receiver)
        index = replica.begin(
            sender.iteration, self._generation, receiver.agreed, beside_fetch=beside
        )
        first = (sender.state, 0)
        replica.write(index, first)
        slowness = max(sender.agent.host.slowness, receiver.agent.host.slowness)
        copy_s = receiver.agent.draw.uniform(*_CHUNK_S) * slowness
        self._world.after(copy_s, self._end_copy, sender, receiver, index, first)

    def _end_copy(self, sender: Trainer, receiver: Trainer, index: int, first: Chunk) -> None:
        if not (sender.alive and receiver.alive):
            return
        reached = self._world.network.connects(sender.agent.name, receiver.agent.name)
        if not (reached and sender.can_run() and receiver.can_run()):
            self._world.after(BLOCKED_S, self._end_copy, sender, receiver, index, first)
            return
        last = (sender.state, 1)
        replica = receiver.agent.host.memory[sender.rank]
        replica.write(index, last)
        committed = replica.commit(index, (first, last))
        self._world.monitor.copied(sender, receiver, untouched=committed and first[0] == last[0])
        self._world.monitor.stored(receiver.agent, sender.rank, replica, index)
        self._copies += 1
        own_last = self._own_last()
        if self._copies == self._needed * (len(self._world.spec.replicas[0]) - own_last):
            if own_last:
                self._due = sender.iteration
                for member in self._ordered():
                    delay_s = member.agent.draw.uniform(*_AGREE_S)
                    self._world.after(delay_s, self._turn, member, sender.iteration)
            else:
                self._complete(sender.iteration)

    def _turn(self, member: Trainer, iteration: int) -> None:
        """Hear that all remote replicas are there, and write over the own one."""
        if not member.alive or member.turned == iteration:
            return
        if not self._is_whole() and member.agent.draw.random() >= _HEARS:
            return  # its agreement fails
        if self._is_blocked():
            self._world.after(BLOCKED_S, self._turn, member, iteration)
            return
        member.begin_turn()
        copy_s = member.agent.draw.uniform(*_CHUNK_S) * member.agent.host.slowness
        self._world.after(copy_s, self._end_turn, member, iteration)

    def _end_turn(self, member: Trainer, iteration: int) -> None:
        if not member.alive:
            return
        if not member.can_run():
            self._world.after(BLOCKED_S, self._end_turn, member, iteration)
            return
        member.end_turn()
        self._turns += 1
        if self._turns == self._needed:
            self._complete(iteration)

    def _complete(self, iteration: int) -> None:
        """Have all ranks agree that an iteration is complete."""
        self._world.monitor.completed(self._generation, iteration)
        asked = [member.agent.hold_asked for member in self._members.values()]
        self._holds = self._holds or self._generation in asked
        for member in self._ordered():
            delay_s = member.agent.draw.uniform(*_AGREE_S)
            self._world.after(delay_s, self._agree, member, iteration)

    def _agree(self, member: Trainer, iteration: int) -> None:
        if not member.alive:
            return
        if not member.can_run():
            self._world.after(BLOCKED_S, self._agree, member, iteration)
            return
        member.agree(iteration)
        if iteration >= self._world.iterations:
            self._finish(member)
        elif self._holds:
            member.hold()
        else:
            self._update_when_possible()

    def _finish(self, member: Trainer) -> None:
        self._world.after(0.02, self._exit, member)

    def _exit(self, member: Trainer) -> None:
        if member.alive and not member.can_run():
            self._world.after(BLOCKED_S, self._exit, member)
        else:
            member.has_finished = True
            member.end(0)

"""Own replicas of one buffer: whoever is lost while they are written over, an iteration is left.

Every case breaks off a checkpoint between the agreement on its remote replicas and its end. See
`castor_runtime.arena.own_turn`, and "Less memory" in docs/invariants.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from castor_lab.one_process import Cluster, Outcome, TrainerThread
from castor_lab.one_process.failures import settled
from castor_policy.checkpoint_memory import SAVING
from castor_policy.job_options import MemoryOptions
from castor_policy.membership import WatchLimits
from castor_records.events.event import of_kind
from castor_records.events.failures import Planned, Retrieved
from castor_runtime.trainer.own_last import Agreement, OwnLast

ITERATIONS = 8
BREAKS_AT = 5
_PATIENCE_S = 60.0

Make = Callable[..., Cluster]


@pytest.fixture
def saving(make: Make) -> Make:
    def made(**changes: Any) -> Cluster:
        limits = WatchLimits(lease_s=1.0)
        return make(memory=MemoryOptions(mode=SAVING), limits=limits, **changes)

    return made


def own_last(trainer: TrainerThread) -> OwnLast:
    """What fills the trainer's own replica, between two checkpoints."""
    assert settled(trainer) == BREAKS_AT - 1
    assert trainer.session is not None
    assert trainer.session._here is not None
    assert trainer.session._here.replicator is not None
    found = trainer.session._here.replicator._own_last
    assert found is not None
    return found


def plans(outcome: Outcome) -> list[tuple[str, int]]:
    return [(one.event.tier, one.event.iteration) for one in of_kind(outcome.events, Planned)]


def sources(outcome: Outcome, generation: int) -> list[str]:
    found = [one.event for one in of_kind(outcome.events, Retrieved)]
    own = {one.rank: one.source for one in found if one.own and one.generation == generation}
    return [source for _, source in sorted(own.items())]


def ends(outcome: Outcome, state: str) -> None:
    assert (outcome.iteration, outcome.state) == (ITERATIONS, state)
    assert set(outcome.codes.values()) - {None} == {0}
    assert outcome.left == ()


def test_a_run_that_saves_memory_holds_one_buffer_of_its_own_part(saving: Make, whole: str) -> None:
    cluster = saving()
    buffers = []

    def look(trainer: TrainerThread) -> None:
        memory = cluster.agent_of(0)._memory
        buffers.extend(memory.replica(rank).part.buffers for rank in (0, 1))

    cluster.at(0, BREAKS_AT, look)
    outcome = cluster.run()
    ends(outcome, whole)
    assert buffers == [1, 2]


def test_who_is_killed_in_the_midst_of_it_loads_that_iteration_from_its_peer(
    saving: Make, whole: str
) -> None:
    cluster = saving()
    torn = threading.Event()

    def break_off(trainer: TrainerThread) -> None:
        own = own_last(trainer)

        def turn(_part: Any, _meta: bytes, iteration: int, generation: int) -> bool:
            assert own._turn.begin(iteration, gives_up=lambda: False)
            own._replica.begin(iteration, generation, iteration).data[:100] = bytes(100)
            torn.set()
            trainer.killed.wait(_PATIENCE_S)
            raise RuntimeError("it was killed")

        own.turn = turn  # type: ignore[method-assign]

    def die(trainer: TrainerThread) -> None:
        assert torn.wait(_PATIENCE_S)
        give_up_s = time.monotonic() + _PATIENCE_S
        others = [(cluster.agent_of(machine)._memory, machine) for machine in (0, 1, 3)]
        while not all(BREAKS_AT in memory.replica(rank).offered() for memory, rank in others):
            assert time.monotonic() < give_up_s, "the others do not turn"
            time.sleep(0.002)
        trainer.killed.set()
        trainer.die()

    cluster.at(2, BREAKS_AT - 1, break_off)
    cluster.at(2, BREAKS_AT, die)
    outcome = cluster.run()
    ends(outcome, whole)
    assert plans(outcome) == [("scratch", 0), ("peer", BREAKS_AT)]
    assert sources(outcome, 2) == ["own_memory", "own_memory", "peer:node-3", "own_memory"]
    assert outcome.redone == 0


def test_all_ranks_of_a_machine_turn_though_the_peer_is_lost_before_one_has_heard(
    saving: Make, make: Make
) -> None:
    """Machine 0's peer is lost as its rank 0 has heard of the agreement, and its rank 1 never does.

    Rank 0 is slow besides: its agent has come to end it before it has written a byte.
    """
    whole = make(ranks_per_machine=2).run().state
    assert whole is not None
    cluster = saving(ranks_per_machine=2)

    class Never:
        def __init__(self, trainer: TrainerThread) -> None:
            self._trainer = trainer

        def wait(self) -> None:
            self._trainer.killed.wait(_PATIENCE_S)
            raise RuntimeError("Connection closed by peer")

    def be_slow(trainer: TrainerThread) -> None:
        own = own_last(trainer)
        turn, read = own.turn, own._device.read

        def late(start: int, target: Any) -> None:
            give_up_s = time.monotonic() + _PATIENCE_S
            while not own._turn._own.last_word and time.monotonic() < give_up_s:
                time.sleep(0.001)
            if start == 0 and trainer.killed.wait(0.3):
                raise RuntimeError("it was killed, and not waited for")
            read(start, target)

        def turn_late(*arguments: Any) -> bool:
            cluster.in_loop(lambda: cluster.lose("node-1", memory=True, silently=True))
            own._device.read = late  # type: ignore[method-assign]
            return turn(*arguments)

        own.turn = turn_late  # type: ignore[method-assign]

    def never_hear(trainer: TrainerThread) -> None:
        own = own_last(trainer)
        wait = own.wait_agreed

        def wait_in_vain(_: Agreement, iteration: int) -> bool:
            return wait(Agreement(Never(trainer)), iteration)

        own.wait_agreed = wait_in_vain  # type: ignore[method-assign]

    cluster.at(0, BREAKS_AT - 1, be_slow)
    cluster.at(1, BREAKS_AT - 1, never_hear)
    outcome = cluster.run()
    ends(outcome, whole)
    assert plans(outcome) == [("scratch", 0), ("peer", BREAKS_AT)]
    assert sources(outcome, 2)[:3] == ["own_memory", "own_memory", "peer:node-0"]
    assert outcome.redone <= 1

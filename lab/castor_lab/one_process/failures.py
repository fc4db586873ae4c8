"""What can fail at a rank's step: given to `Cluster.at` and `Cluster.at_load`."""

from __future__ import annotations

import time

from castor_lab.one_process.cluster import PATIENCE_S, Cluster, Failure
from castor_lab.one_process.memory_group import MemoryGroup
from castor_lab.one_process.thread_trainer import TrainerThread
from castor_runtime.arena import Replica
from castor_runtime.trainer.trainer_generation import TrainerGeneration

_LOOK_S = 0.002


def _here(trainer: TrainerThread) -> TrainerGeneration:
    assert trainer.session is not None, "it trains"
    assert trainer.session._here is not None, "it has joined"
    return trainer.session._here


def settled(trainer: TrainerThread) -> int:
    """Wait until the iteration that was handed over is complete on all ranks; return which."""
    here = _here(trainer)
    replicator = here.replicator
    assert replicator is not None, "it checkpoints"
    here.gate.open()
    replicator.wait_complete()
    assert replicator.agreed is not None, "an iteration was handed over"
    return replicator.agreed


def die(trainer: TrainerThread) -> None:
    """Have the trainer killed while its checkpoint is under way."""
    trainer.die()


def die_settled(trainer: TrainerThread) -> None:
    """Have the trainer killed once its checkpoint is complete: nothing is lost."""
    settled(trainer)
    trainer.die()


def leave(*, says_so: bool) -> Failure:
    """Return what has the training program end with code 0 in the middle of its training.

    Args:
        says_so: it says before that it has finished, as a program does that ends by itself.
    """

    def fail(trainer: TrainerThread) -> None:
        settled(trainer)
        if says_so:
            assert trainer.session is not None, "it trains"
            trainer.session.finish(trainer.meta)
        trainer.leave()

    return fail


def garble(trainer: TrainerThread) -> None:
    """Have a piece of the next checkpoint arrive damaged."""
    settled(trainer)
    group = _here(trainer).exchanging.group
    assert isinstance(group, MemoryGroup), "it was made by the trainer"
    trainer.meeting.garble(group.group)


def raise_error(trainer: TrainerThread) -> None:
    """Have the training program fail."""
    settled(trainer)
    raise ValueError("an error of the script's")


def lose(
    cluster: Cluster,
    *names: str,
    memory: bool = False,
    comes_back: bool = True,
    silently: bool = False,
) -> Failure:
    """Return what loses these agents at once, when the checkpoint under way is complete."""

    def fail(trainer: TrainerThread) -> None:
        settled(trainer)

        def lose_all() -> None:
            for name in names:
                cluster.lose(name, memory=memory, comes_back=comes_back, silently=silently)

        cluster.in_loop(lose_all)
        if names:  # nobody goes on without them
            trainer.killed.wait(PATIENCE_S)

    return fail


def damage(cluster: Cluster, machine: int, rank: int) -> Failure:
    """Return what flips a bit of a rank's newest complete part in a machine's memory."""

    def fail(trainer: TrainerThread) -> None:
        iteration = settled(trainer)
        segment = cluster.agent_of(machine)._memory.segments()[rank]
        flip(segment, iteration)

    return fail


def flip(segment: str, iteration: int) -> None:
    """Flip a bit of an iteration in a segment."""
    with Replica.open(segment) as replica:
        replica.snapshot(iteration).data[1] ^= 1


def wait_until_offered(cluster: Cluster, trainer: TrainerThread) -> None:
    """Wait until the trainer's agent knows what the trainer is to load: it has verified that."""
    machine = cluster.agent_of(trainer.settings.machine)._machine
    give_up_s = time.monotonic() + PATIENCE_S
    while trainer.settings.rank not in machine._offers:
        trainer.go_on()
        if time.monotonic() > give_up_s:
            raise TimeoutError("nothing is offered")
        time.sleep(_LOOK_S)

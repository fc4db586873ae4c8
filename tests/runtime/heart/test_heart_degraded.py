"""Training goes on while a lost replica is fetched, where the job's `redundancy` says so.

Machine 0 loses its memory. It fetches its own part, and the replica of machine 1's part that
belongs there never comes: a checkpoint has to bring it, beside that fetch, and end it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from castor_lab.one_process import Cluster, Outcome, TrainerThread
from castor_lab.one_process.failures import lose, settled
from castor_policy.checkpoint_memory import FAST, SAVING, BufferState
from castor_policy.job_options import DEGRADED, MemoryOptions, RecoveryOptions, TrafficOptions
from castor_policy.membership import WatchLimits
from castor_records.events.event import of_kind
from castor_records.events.failures import Degraded, Planned, Redundant, Retrieved
from castor_runtime.transport import PeerClient

ITERATIONS = 8
LOST_AT = 4
HELD = 1  # whose part never comes to machine 0

Make = Callable[..., Cluster]


class HeldUp:
    """Fetches that begin to write, and then stand still until they are given up."""

    def __init__(self) -> None:
        self.begun = self.given_up = 0

    async def stand_still(self, writing: Any) -> None:
        self.begun += 1
        try:
            while True:
                writing.data[:8] = b"too late"
                await asyncio.sleep(0.01)
        finally:
            self.given_up += 1


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldUp]:
    held = HeldUp()
    fetch = PeerClient.fetch

    async def fetched(
        self: PeerClient,
        addresses: Any,
        rank: int,
        iteration: int,
        mark: bytes,
        writing: Any,
        **options: Any,
    ) -> Any:
        if (rank, iteration) == (HELD, LOST_AT):
            await held.stand_still(writing)
        return await fetch(self, addresses, rank, iteration, mark, writing, **options)

    monkeypatch.setattr(PeerClient, "fetch", fetched)
    yield held
    assert held.begun == held.given_up > 0


def degraded(make: Make, mode: str, every: int = 1) -> Cluster:
    return make(
        memory=MemoryOptions(mode=mode),
        recovery=RecoveryOptions(redundancy=DEGRADED),
        traffic=TrafficOptions(chunk_bytes=4096, checkpoint_every=every),
        limits=WatchLimits(lease_s=1.0),
    )


def plans(outcome: Outcome) -> list[tuple[str, int]]:
    return [(one.event.tier, one.event.iteration) for one in of_kind(outcome.events, Planned)]


def ends(outcome: Outcome, state: str) -> None:
    assert (outcome.iteration, outcome.state) == (ITERATIONS, state)
    assert set(outcome.codes.values()) - {None} == {0}
    assert outcome.left == ()


@pytest.mark.parametrize("mode", [FAST, SAVING])
def test_a_checkpoint_replaces_what_is_still_fetched_and_another_loss_is_survived(
    make: Make, whole: str, held_up: HeldUp, mode: str
) -> None:
    cluster = degraded(make, mode)
    seen = []

    def look(trainer: TrainerThread) -> None:
        """After the first checkpoint: it lies beside what is fetched, or was until now."""
        assert settled(trainer) == LOST_AT + 1
        replica = cluster.agent_of(0)._memory.replica(HELD)
        seen.append((replica.offered(), replica.headers()[0].state))

    cluster.at(0, LOST_AT, lose(cluster, "node-0", memory=True))
    cluster.at(0, LOST_AT + 1, look)
    cluster.at(1, LOST_AT + 2, lose(cluster, "node-1", memory=True))
    outcome = cluster.run()
    ends(outcome, whole)
    assert seen == [(frozenset({LOST_AT + 1}), BufferState.WRITING)]
    assert plans(outcome) == [("scratch", 0), ("peer", LOST_AT), ("peer", LOST_AT + 2)]
    assert outcome.redone == 0
    told = [(one.event.generation, one.event.machine) for one in of_kind(outcome.events, Degraded)]
    assert (2, 0) in told
    again = [(o.event.generation, o.event.machine) for o in of_kind(outcome.events, Redundant)]
    assert (2, 0) in again
    # Nobody has fetched it: the replica of iteration 5 came with the checkpoint.
    fetched = [one.event for one in of_kind(outcome.events, Retrieved)]
    assert not [e for e in fetched if (e.machine, e.rank, e.generation) == (0, HELD, 2)]


def test_another_machine_lost_before_that_checkpoint_costs_what_was_trained_since(
    make: Make, whole: str, held_up: HeldUp
) -> None:
    """Machine 3 is of another pair: iteration 4 is still there for every shard."""
    cluster = degraded(make, FAST, every=2)
    cluster.at(0, LOST_AT, lose(cluster, "node-0", memory=True))
    cluster.at(3, LOST_AT + 1, lose(cluster, "node-3", memory=True))
    outcome = cluster.run()
    ends(outcome, whole)
    assert plans(outcome) == [("scratch", 0), ("peer", LOST_AT), ("peer", LOST_AT)]
    assert outcome.redone == 1
    assert held_up.begun == 2

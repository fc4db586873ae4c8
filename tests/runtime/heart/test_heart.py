"""The agents' and trainers' heart in one process: every failure ends in the very same bits.

Real agents, sessions, replicators, shared memory and checkpoint servers; the store and the process
groups are in memory (`castor_lab.one_process`). Each run takes a second.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from castor_analysis.journals import replayed
from castor_lab.one_process import Cluster, Outcome, TrainerThread, small_job
from castor_lab.one_process.failures import (
    damage,
    die,
    die_settled,
    flip,
    garble,
    lose,
    raise_error,
    settled,
    wait_until_offered,
)
from castor_policy.checkpoint_memory import FAST, SAVING
from castor_policy.job_options import (
    MemoryOptions,
    PersistenceOptions,
    RecoveryOptions,
    TrafficOptions,
)
from castor_policy.membership import WatchLimits
from castor_records.events.event import Event, of_kind
from castor_records.events.failures import Detected, Planned, Redundant, Replaced, Retrieved
from castor_records.events.storing import Persisted

ITERATIONS = 8
RING_OF_THREE = ((0, 1, 2), (1, 2, 3), (2, 3, 0), (3, 0, 1))

Make = Callable[..., Cluster]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    clusters: list[Cluster] = []
    folders: list[Path] = []

    def made(
        ranks: int = 1,
        standby: int = 0,
        traffic: Any = None,
        iterations: int = ITERATIONS,
        lease_s: float = 4.0,
        **changes: Any,
    ) -> Cluster:
        spec = small_job(
            ranks_per_machine=ranks,
            traffic=TrafficOptions(chunk_bytes=4096, **(traffic or {})),
            limits=WatchLimits(lease_s=lease_s),
            **changes,
        )
        folders.append(tmp_path_factory.mktemp(spec.job))
        clusters.append(Cluster(spec, folders[-1], iterations=iterations, standby=standby))
        return clusters[-1]

    yield made
    for cluster in clusters:
        cluster.remove_memory()
    # Whatever happened to them, what the agents took in leads to what they did.
    journals = [file for folder in folders for file in sorted(folder.rglob("journal-*.jsonl"))]
    lives = [told for file in journals for told in replayed(file)]
    assert len(lives) >= 4 * len(clusters)
    assert [told.parting for told in lives if told.parting is not None] == []


class Whole(dict[int, str]):
    """The final state of a run without any failure, by ranks a machine; made when it is asked."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def __missing__(self, ranks: int) -> str:
        outcome = self._make(ranks).run()
        assert outcome.state is not None
        assert outcome.redone == 0
        ends(outcome, outcome.state)
        self[ranks] = outcome.state
        return outcome.state


@pytest.fixture(scope="module")
def whole(make: Make) -> Whole:
    return Whole(make)


def ends(outcome: Outcome, state: str | None, iterations: int = ITERATIONS) -> None:
    """Hold a run to its right end: state, exit codes, and nothing left."""
    assert (outcome.iteration, outcome.state) == (iterations, state)
    assert set(outcome.codes.values()) - {None} == {0}
    # The report of a machine that died without a word goes with its lease, maybe after the job.
    gone = {name for name, code in outcome.codes.items() if code is None}
    assert {key.rpartition("/agents/")[2] for key in outcome.left} <= gone
    # Nothing is overwritten before every replica is there again: so it was, in the end.
    again = [
        (one.event.generation, one.event.machine) for one in of_kind(outcome.events, Redundant)
    ]
    newest, _ = max(again)
    assert {machine for generation, machine in again if generation == newest} == {0, 1, 2, 3}
    alive = [one.name for one in threading.enumerate() if one.name.startswith("castor-t")]
    assert alive == []


def plans(outcome: Outcome) -> list[tuple[str, int]]:
    return [(p.event.tier, p.event.iteration) for p in of_kind(outcome.events, Planned)]


def sources(outcome: Outcome, rank: int) -> list[str]:
    """Where a rank's own part came from, generation after generation."""
    found = of_kind(outcome.events, Retrieved)
    return [one.event.source for one in found if one.event.rank == rank and one.event.own]


START = ("scratch", 0)


@pytest.mark.parametrize(("ranks", "rank", "step"), [(1, 0, 1), (1, 3, 5), (2, 5, 4), (2, 0, 8)])
def test_a_trainer_that_dies_costs_nothing_that_was_complete(
    make: Make, whole: Whole, ranks: int, rank: int, step: int
) -> None:
    cluster = make(ranks)
    cluster.at(rank, min(step, ITERATIONS - 1), die_settled)
    outcome = cluster.run()
    ends(outcome, whole[ranks])
    assert plans(outcome) == [START, ("own_memory", min(step, ITERATIONS - 1))]
    assert outcome.redone == 0
    (detected,) = of_kind(outcome.events, Detected)
    assert (detected.event.how, detected.event.rank) == ("signal", rank)


def test_a_trainer_that_dies_in_the_middle_of_a_checkpoint_costs_that_one(
    make: Make, whole: Whole
) -> None:
    cluster = make()
    cluster.at(2, 5, die)
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert outcome.redone <= 1
    assert plans(outcome)[1] in [("own_memory", 4), ("own_memory", 5)]


# ---- agents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("silently", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_agent_that_comes_back_finds_its_memory_again(
    make: Make, whole: Whole, ranks: int, silently: bool
) -> None:
    cluster = make(ranks, lease_s=1.0)
    cluster.at(2 * ranks, 4, lose(cluster, "node-2", silently=silently))
    outcome = cluster.run()
    ends(outcome, whole[ranks])
    assert plans(outcome) == [START, ("own_memory", 4)]
    assert outcome.redone == 0


def test_an_agent_that_lost_its_memory_fetches_from_the_peer_that_holds_it(
    make: Make, whole: Whole
) -> None:
    cluster = make(2)
    cluster.at(1, 3, lose(cluster, "node-0", memory=True))
    outcome = cluster.run()
    ends(outcome, whole[2])
    assert plans(outcome) == [START, ("peer", 3)]
    assert [sources(outcome, rank)[-1] for rank in (0, 1, 2, 7)] == [
        "peer:node-1",
        "peer:node-1",
        "own_memory",
        "own_memory",
    ]
    assert outcome.redone == 0


def test_a_lost_part_of_which_two_machines_have_a_replica_comes_from_them_together(
    make: Make, whole: Whole
) -> None:
    cluster = make(2, replicas=RING_OF_THREE)
    cluster.at(1, 3, lose(cluster, "node-0", memory=True))
    outcome = cluster.run()
    ends(outcome, whole[2])
    came_from = {name for rank in (0, 1) for name in sources(outcome, rank)[-1][5:].split(",")}
    assert came_from <= {"node-1", "node-2"}  # of a small part one may have sent all


def test_a_standby_takes_a_lost_machines_place_and_fetches_its_parts(
    make: Make, whole: Whole
) -> None:
    cluster = make(2, standby=1, lease_s=1.0)
    cluster.at(6, 5, lose(cluster, "node-3", memory=True, comes_back=False, silently=True))
    outcome = cluster.run()
    ends(outcome, whole[2])
    assert outcome.codes["node-3"] is None
    assert plans(outcome) == [START, ("peer", 5)]
    assert sources(outcome, 6)[-1] == "peer:node-2"


def test_a_standby_has_its_memory_at_hand_before_it_is_needed(make: Make, whole: Whole) -> None:
    cluster = make(standby=1)
    held: list[dict[int, str]] = []

    def look(trainer: TrainerThread) -> None:
        agent = cluster.agent("node-4")
        give_up_s = time.monotonic() + 60.0
        while len(agent._memory.segments()) < 2 and time.monotonic() < give_up_s:
            trainer.killed.wait(0.01)
        held.append(agent._memory.segments())

    cluster.at(0, 2, look)
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert [len(segments) for segments in held] == [2]


def test_the_roots_own_agent_may_be_lost(make: Make, whole: Whole) -> None:
    cluster = make(lease_s=1.0)

    def lose_root(trainer: TrainerThread) -> None:
        lose(cluster, cluster.root(), silently=True)(trainer)

    cluster.at(1, 4, lose_root)
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("own_memory", 4)]


def test_one_of_each_group_may_lose_its_memory_at_once(make: Make, whole: Whole) -> None:
    cluster = make()
    cluster.at(0, 6, lose(cluster, "node-1", "node-2", memory=True))
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("peer", 6)]
    assert outcome.redone == 0


def test_a_group_that_loses_all_its_memory_begins_anew(make: Make, whole: Whole) -> None:
    cluster = make()
    cluster.at(0, 4, lose(cluster, "node-2", "node-3", memory=True))
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, START]
    assert outcome.redone == 4


def test_a_group_that_loses_all_its_memory_is_loaded_from_storage(
    make: Make, tmp_path: Path
) -> None:
    import_module("castor_runtime.persistent.deepspeed_format")  # seconds; not while it trains
    whole = make(iterations=60).run()
    persistence = PersistenceOptions(tiers=(str(tmp_path / "kept"),), every_s=0.3)
    cluster = make(iterations=60, persistence=persistence)
    persisted = threading.Event()
    for step in range(1, 60):
        cluster.at(0, step, lambda _: persisted.wait(0.06))

    def lose_both() -> None:
        persisted.set()
        for name in ("node-2", "node-3"):
            cluster.lose(name, memory=True)

    cluster.when(Persisted, 1, lose_both)
    outcome = cluster.run()
    ends(outcome, whole.state, 60)
    assert plans(outcome)[1][0] == "storage"
    assert plans(outcome)[1][1] >= 10
    assert sources(outcome, 0)[-1] == "storage"


def test_with_three_copies_two_neighbours_may_be_lost(make: Make, whole: Whole) -> None:
    cluster = make(replicas=RING_OF_THREE, memory=MemoryOptions(mode=SAVING))
    cluster.at(3, 4, lose(cluster, "node-0", "node-1", memory=True))
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("peer", 4)]
    assert {sources(outcome, rank)[-1] for rank in (0, 1)} <= {"peer:node-2", "peer:node-3"}


def test_a_second_failure_while_the_first_is_recovered_from(make: Make, whole: Whole) -> None:
    cluster = make()
    cluster.at(0, 4, die_settled)
    cluster.at_load(3, 2, lambda trainer: trainer.die())
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("own_memory", 4), ("own_memory", 4)]


@pytest.mark.parametrize("moment", [Detected, Replaced, Planned, Redundant])
def test_a_machine_may_be_lost_at_any_moment_of_a_recovery(
    make: Make, whole: Whole, moment: type[Event]
) -> None:
    cluster = make(standby=2, lease_s=2.0, memory=MemoryOptions(mode=SAVING))
    cluster.at(1, 5, lose(cluster, "node-1", memory=True, comes_back=False))
    cluster.when(
        moment, 2, lambda: cluster.lose("node-2", memory=True, comes_back=False, silently=True)
    )
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert {one for one, _ in plans(outcome)[1:]} == {"peer"}
    assert {iteration for _, iteration in plans(outcome)[1:]} <= {5, 6, 7}
    assert len({one.event.machine for one in of_kind(outcome.events, Replaced)}) == 2
    assert outcome.redone <= 1


def test_one_machine_after_the_other_of_a_group_may_lose_its_memory(
    make: Make, whole: Whole
) -> None:
    cluster = make(standby=2, memory=MemoryOptions(mode=SAVING))
    cluster.at(2, 3, lose(cluster, "node-2", memory=True, comes_back=False))
    cluster.at(3, 6, lose(cluster, "node-3", memory=True, comes_back=False))
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("peer", 3), ("peer", 6)]
    assert outcome.redone == 0


@pytest.mark.parametrize("seed", range(4))
def test_random_failures_end_in_the_same_bits(make: Make, whole: Whole, seed: int) -> None:
    draw = random.Random(f"heart {seed}")
    ranks = draw.choice((1, 2))
    mode = (FAST, SAVING)[seed % 2]
    cluster = make(ranks, lease_s=1.0, memory=MemoryOptions(mode=mode))
    told = []
    for step in sorted(draw.sample(range(1, ITERATIONS), 3)):
        rank, machine = draw.randrange(4 * ranks), draw.randrange(4)
        memory, silently = draw.random() < 0.5, draw.random() < 0.3
        losing = lose(cluster, f"node-{machine}", memory=memory, silently=silently)
        failure = draw.choice((die, die_settled, losing, losing))
        cluster.at(rank, step, failure)
        told.append(f"{step}: {failure} of rank {rank} or node-{machine}, {memory}, {silently}")
    outcome = cluster.run()
    assert outcome.state == whole[ranks], told
    ends(outcome, whole[ranks])
    assert len(plans(outcome)) >= 3, told


# ---- damage ------------------------------------------------------------------------------------


def test_a_damaged_own_part_is_found_by_its_agent_and_fetched(make: Make, whole: Whole) -> None:
    cluster = make()
    cluster.at(2, 5, damage(cluster, machine=1, rank=1))
    cluster.at(2, 5, die)
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("own_memory", 5)]
    assert sources(outcome, 1) == ["scratch", "peer:node-0"]
    assert outcome.redone == 0


def test_a_part_damaged_after_its_agent_has_looked_is_found_by_the_trainer(
    make: Make, whole: Whole
) -> None:
    cluster = make()
    cluster.at(1, 5, die_settled)

    def damage_at_load(trainer: TrainerThread) -> None:
        wait_until_offered(cluster, trainer)
        flip(cluster.agent_of(1)._memory.segments()[1], 5)

    cluster.at_load(1, 2, damage_at_load)
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("own_memory", 5)]
    assert sources(outcome, 1) == ["scratch", "own_memory", "peer:node-0"]


def test_a_piece_that_arrives_damaged_is_no_part_of_a_checkpoint(make: Make, whole: Whole) -> None:
    cluster = make()
    cluster.at(3, 4, garble)
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("own_memory", 4)]
    (detected,) = of_kind(outcome.events, Detected)
    assert "arrived damaged" in " ".join((detected.event.cause, *detected.event.seen))


def test_where_the_only_copy_left_is_damaged_training_begins_anew(make: Make, whole: Whole) -> None:
    cluster = make()
    cluster.at(0, 5, damage(cluster, machine=1, rank=0))
    cluster.at(0, 5, lose(cluster, "node-0", memory=True))
    outcome = cluster.run()
    ends(outcome, whole[1])
    # Who was to load iteration 5 has given up what it had of another one.
    assert plans(outcome) == [START, ("peer", 5), START]
    assert outcome.redone == 5


def test_a_holder_that_is_lost_while_it_is_fetched_from_is_asked_again(
    make: Make, whole: Whole
) -> None:
    cluster = make()

    def watch(trainer: TrainerThread) -> None:
        settled(trainer)
        memory = cluster.agent_of(1)._memory
        serve, asked = memory.open, []

        def refuse_once(rank: int, iteration: int) -> Any:
            if not asked:
                asked.append(rank)
                cluster._loop.call_soon_threadsafe(lambda: cluster.lose("node-1"))
                raise ConnectionResetError
            return serve(rank, iteration)

        memory.open = refuse_once  # type: ignore[method-assign]

    cluster.at(0, 5, watch)
    cluster.at(0, 5, lose(cluster, "node-0", memory=True))
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome)[1] == ("peer", 5)
    assert {iteration for _, iteration in plans(outcome)[1:]} == {5}
    assert len(plans(outcome)) >= 3
    assert outcome.redone == 0


# ---- the store ---------------------------------------------------------------------------------


def test_training_goes_on_while_the_store_is_away(make: Make, whole: Whole) -> None:
    cluster = make()
    cluster.at(0, 3, lambda _: cluster.in_loop(lambda: cluster.stop_store(0.6)))
    cluster.at(2, 6, lambda _: time.sleep(0.7))
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START]


def test_a_failure_while_the_store_is_away_waits_for_it(make: Make, whole: Whole) -> None:
    cluster = make()
    cluster.at(0, 3, lambda _: cluster.in_loop(lambda: cluster.stop_store(0.6)))
    cluster.at(3, 4, die_settled)
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("own_memory", 4)]


# ---- checkpoints -------------------------------------------------------------------------------


def test_with_a_checkpoint_of_three_the_newest_of_them_is_loaded(make: Make, whole: Whole) -> None:
    cluster = make(traffic={"checkpoint_every": 3})
    cluster.at(1, 5, lose(cluster, "node-1", memory=True))
    outcome = cluster.run()
    ends(outcome, whole[1])
    assert plans(outcome) == [START, ("peer", 3)]
    assert outcome.redone == 2


def test_a_schedule_of_idle_spans_ends_in_the_same_bits(make: Make, whole: Whole) -> None:
    cluster = make(2, traffic={"scheme": "pipelined"})
    cluster.at(4, 5, die_settled)
    outcome = cluster.run()
    ends(outcome, whole[2])
    assert plans(outcome) == [START, ("own_memory", 5)]


def test_an_error_that_comes_again_and_again_ends_the_job_and_its_memory_is_kept(
    make: Make,
) -> None:
    cluster = make(recovery=RecoveryOptions(max_attempts=2))

    def fail_always(trainer: TrainerThread) -> None:
        cluster.at(2, 4, fail_always)
        raise_error(trainer)

    cluster.at(2, 4, fail_always)
    outcome = cluster.run()
    assert set(outcome.codes.values()) == {1}
    assert plans(outcome) == [START, *[("own_memory", 4)] * 3]
    assert len([name for name in outcome.left if "-r" in name]) == 8  # both copies of each rank

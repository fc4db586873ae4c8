"""Small runs worked out by hand, to the nanosecond, on all three engines.

Each comment tells the story in time; `all_three` also holds that the engines agree. Iterations
take 100 unless said otherwise.
"""

from __future__ import annotations

import pytest

from castor_policy.recovery import OWN_MEMORY, PEER, SCRATCH, STORAGE
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.tally import Operations, Tally

PAIRS = [[0, 1], [1, 0], [2, 3], [3, 2]]

GEMINI = StrategyCosts(
    iteration_ns=100,
    memory_every=1,
    memory_transfer_ns=40,
    storage_every=4,
    storage_transfer_ns=50,
    serialise_ns=20,
    retrieve_own_ns=5,
    retrieve_peer_ns=10,
    retrieve_storage_ns=60,
    replicate_ns=30,
    warm_up_ns=25,
)


def test_a_software_failure_loads_from_own_memory(all_three) -> None:
    # Iterations end at 100, 200, ...; their memory checkpoints are complete at 140, 240, ...
    # Failure at 230: 2 is done, only 1 is complete. 130 of progress are lost.
    # Serialisation 230-250, retrieval 250-255, warm-up 255-280, training from iteration 1.
    # The end at 500 comes 220 later: iterations 2 and 3, and 20 of the fourth.
    tally, sources = all_three(GEMINI, Operations(4), PAIRS, [(230, 2, 0, 0)], horizon_ns=500)
    assert sources == [OWN_MEMORY]
    assert tally == Tally(
        wall_ns=500,
        useful_ns=320,
        lost_progress_ns=130,
        serialisation_ns=20,
        retrieval_ns=5,
        warm_up_ns=25,
        iterations=3,
        recoveries=1,
        software_failures=1,
        recovered_own_memory=1,
    )


def test_both_of_a_group_lost_before_re_replication_ends(all_three) -> None:
    # Storage: iteration 4 ends at 400, complete at 450. Failure of 0 at 550: 5 is done, memory
    # holds 5 (complete at 540): 50 lost. Serialisation to 570, machine there at 560, retrieval from
    # machine 1 to 580, replicas back at 610. Machine 1 fails at 609: 0 holds its own shard
    # only, shard 1 is gone. Storage has 4: another 100 lost. Warm-up was 580-605, training 605-609.
    # No serialisation; machine at 619, retrieval to 679, warm-up to 704, training from 4.
    rows = [(550, 0, 1, 10), (609, 1, 1, 10)]
    tally, sources = all_three(GEMINI, Operations(4), PAIRS, rows, horizon_ns=1000)
    assert sources == [PEER, STORAGE]
    assert tally == Tally(
        wall_ns=1000,
        useful_ns=400 + 296,
        lost_progress_ns=50 + 4 + 100,
        serialisation_ns=20,
        replacement_wait_ns=10,
        retrieval_ns=10 + 60,
        warm_up_ns=25 + 25,
        iterations=6,
        recoveries=2,
        hardware_failures=2,
        standby_empty=2,
        recovered_peer=1,
        recovered_storage=1,
    )


def test_both_of_a_group_lost_after_re_replication_ended(all_three) -> None:
    # As above, but machine 1 fails at 610, the instant at which the replicas are back: what ends at
    # an instant has ended before a failure strikes. So shard 1 comes from machine 0, iteration 5.
    # Training 605-610 is lost. Serialisation to 630, retrieval to 640, warm-up to 665.
    rows = [(550, 0, 1, 10), (610, 1, 1, 10)]
    tally, sources = all_three(GEMINI, Operations(4), PAIRS, rows, horizon_ns=1000)
    assert sources == [PEER, PEER]
    assert tally == Tally(
        wall_ns=1000,
        useful_ns=500 + 335,
        lost_progress_ns=50 + 5,
        serialisation_ns=40,
        retrieval_ns=20,
        warm_up_ns=50,
        iterations=8,
        recoveries=2,
        hardware_failures=2,
        standby_empty=2,
        recovered_peer=2,
    )


def test_machines_of_different_groups_fetch_at_the_same_time(all_three) -> None:
    # 0 and 2 lost at once: holders 1 and 3 serve one each, 10 in all.
    tally, sources = all_three(
        GEMINI, Operations(4), PAIRS, [(245, 0, 1, 0), (245, 2, 1, 0)], horizon_ns=400
    )
    assert sources == [PEER, PEER]
    assert tally.retrieval_ns == 10
    # With all replicas of three shards on machine 3 it serves them one after the other.
    star = [[0, 3], [1, 3], [2, 3], [3, 0]]
    rows = [(245, machine, 1, 0) for machine in range(3)]
    tally, sources = all_three(GEMINI, Operations(4), star, rows, horizon_ns=400)
    assert sources == [PEER, PEER, PEER]
    assert tally.retrieval_ns == 30


def test_eight_at_once_of_which_the_groups_decide(all_three) -> None:
    # 16 machines in pairs, eight lost at 450. First one of each pair: all of them from peers.
    pairs = [[n, n ^ 1] for n in range(16)]
    spread = [(450, 2 * n, 1, 0) for n in range(8)]
    tally, sources = all_three(GEMINI, Operations(16), pairs, spread, horizon_ns=1000)
    # Memory holds 4 (440). Serialisation to 470, retrieval to 480, warm-up to 505.
    assert sources == [PEER] * 8
    assert (tally.recoveries, tally.hardware_failures) == (1, 8)
    assert (tally.lost_progress_ns, tally.useful_ns) == (50, 400 + 495)
    # Machines 0 .. 7: pairs lost whole. Storage holds 4 (complete at 450, the same instant).
    # No serialisation; retrieval to 510, warm-up to 535.
    block = [(450, n, 1, 0) for n in range(8)]
    tally, sources = all_three(GEMINI, Operations(16), pairs, block, horizon_ns=1000)
    assert sources == [STORAGE] * 8
    assert (tally.recoveries, tally.hardware_failures) == (1, 8)
    assert (tally.lost_progress_ns, tally.useful_ns) == (50, 400 + 465)
    # One nanosecond earlier storage has nothing: from scratch. Warm-up 449-474.
    block = [(449, n, 1, 0) for n in range(8)]
    tally, sources = all_three(GEMINI, Operations(16), pairs, block, horizon_ns=1000)
    assert sources == [SCRATCH] * 8
    assert (tally.lost_progress_ns, tally.useful_ns) == (449, 526)
    assert tally.retrieval_ns == 0


def test_a_failure_in_a_transfer_to_storage(all_three) -> None:
    # Every 2 iterations 30 of stall, then 70 of transfer beside training.
    # Iteration 2 ends at 200, stall to 230, complete at 300. Iteration 3 ends at 330, 4 at 430,
    # stall to 460, complete at 530. Failure at 529: back to 2. Trained by then: 529 less 60 of
    # stalls is 469; 200 are kept, 269 lost. Retrieval 529-544, warm-up to 549.
    # Training: 3 at 649, 4 at 749, stall to 779; the end at 800 is 21 into iteration 5.
    profile = StrategyCosts(
        iteration_ns=100,
        storage_every=2,
        storage_stall_ns=30,
        storage_transfer_ns=70,
        retrieve_storage_ns=15,
        warm_up_ns=5,
    )
    rows = [(529, 0, 0, 0)]
    tally, sources = all_three(profile, Operations(1), [[0]], rows, horizon_ns=800)
    assert sources == [STORAGE]
    assert tally == Tally(
        wall_ns=800,
        useful_ns=421,
        lost_progress_ns=269,
        checkpoint_stall_ns=90,
        retrieval_ns=15,
        warm_up_ns=5,
        iterations=4,
        recoveries=1,
        software_failures=1,
        recovered_storage=1,
    )
    # At 530 it is complete: 470 trained, 400 kept. Retrieval to 545, warm-up to 550, then 250 of
    # training without a stall: that of iteration 4 is not taken again, that of 6 would start at
    # 750: 30 of it and 20 of iteration 7.
    tally, _ = all_three(profile, Operations(1), [[0]], [(530, 0, 0, 0)], horizon_ns=800)
    assert (tally.lost_progress_ns, tally.useful_ns, tally.checkpoint_stall_ns) == (70, 620, 90)


def test_the_standby_pool_runs_dry(all_three) -> None:
    # One standby, activated in 7; requested machines come after 100, 300, 10.
    # 0 fails at 250: standby, ready at 257 (serialisation lasts to 270). Its request comes at 350.
    # 2 fails at 300: the pool is dry; request at 600. Back to training at 350 when the first
    # request arrives: whoever comes first. 0 again at 420: dry still (one outstanding, due
    # at 600); its own request comes at 430: that frees it.
    plain = GEMINI._replace(storage_every=0, replicate_ns=0)
    rows = [(250, 0, 1, 100), (300, 2, 1, 300), (420, 0, 1, 10)]
    operations = Operations(4, standbys=1, activation_ns=7)
    tally, sources = all_three(plain, operations, PAIRS, rows, horizon_ns=500)
    assert sources == [PEER, PEER, PEER]
    assert tally.standby_empty == 2
    # 250: memory holds 2 (240). 250-270 serialisation, 270-280 retrieval, 280-300 warm-up.
    # 300: at 300 memory is whole again; 300-320, wait to 350, retrieval to 360, warm-up to 385.
    # 385-420 trained and lost. 420-440 serialisation (machine there at 430), to 450, to 475.
    # 475-500: 25 of iteration 3.
    assert tally == Tally(
        wall_ns=500,
        useful_ns=225,
        lost_progress_ns=50 + 35,
        serialisation_ns=60,
        replacement_wait_ns=30,
        retrieval_ns=30,
        warm_up_ns=20 + 25 + 25,
        iterations=2,
        recoveries=2,
        hardware_failures=3,
        standby_empty=2,
        recovered_peer=3,
    )
    # Dedicated: the second failure waits for its own machine, until 600.
    tally, _ = all_three(plain, operations._replace(dedicated=1), PAIRS, rows[:2], horizon_ns=1000)
    assert tally.replacement_wait_ns == 600 - 320
    assert tally.standby_empty == 1
    # Dedicated, third failure at 420 in that wait: the standby is back (350), so 0 needs 427, and
    # 2 its own machine all the same.
    tally, _ = all_three(plain, operations._replace(dedicated=1), PAIRS, rows, horizon_ns=1000)
    assert tally.replacement_wait_ns == (420 - 320) + (600 - 440)
    assert tally.standby_empty == 1


def test_detection_keeps_to_the_polls(all_three) -> None:
    # Heartbeats at 0, 3, 6, ...; polls at 0, 5, 10, ...; 3 misses. The last heartbeat before the
    # failure is seen by the poll at or after it; three polls later the machine is dead.
    bare = StrategyCosts(iteration_ns=1000)
    for failure_ns, known_ns in [
        (1, 15),  # heartbeat 0, poll 0; misses at 5, 10, 15
        (2, 15),
        (3, 20),  # heartbeat 3, seen at 5; misses at 10, 15, 20
        (5, 20),
        (6, 25),  # heartbeat 6, seen at 10
        (9, 25),
        (11, 25),  # heartbeat 9
        (12, 30),  # heartbeat 12, seen at 15
        (15, 30),  # heartbeat 15, seen at 15
    ]:
        operations = Operations(1, heartbeat_ns=3, poll_ns=5, misses=3)
        tally, _ = all_three(bare, operations, [[0]], [(failure_ns, 0, 0, 0)], horizon_ns=99)
        assert tally.detection_ns == known_ns - failure_ns
        assert tally.useful_ns == 99 - known_ns
    # A second failure before the first is detected counts from its own last heartbeat.
    operations = Operations(2, heartbeat_ns=3, poll_ns=5, misses=3)
    tally, _ = all_three(bare, operations, [[0], [1]], [(1, 0, 0, 0), (7, 1, 0, 0)], horizon_ns=99)
    assert tally.detection_ns == 24
    assert tally.recoveries == 1


def test_an_agent_sees_a_process_exit_before_the_polls_could(all_three) -> None:
    # As above: a machine lost at 1 is dead at 15, at 7 at 25. An exit is known 2 later.
    bare = StrategyCosts(iteration_ns=1000)
    operations = Operations(2, heartbeat_ns=3, poll_ns=5, misses=3, exit_ns=2)
    for rows, detected_ns, recoveries in [
        ([(7, 0, 0, 0)], 2, 1),
        ([(7, 0, 1, 0)], 18, 1),
        # A process that exits meanwhile does not make a lost machine known sooner.
        ([(1, 0, 1, 0), (7, 1, 0, 0)], 14, 1),
        ([(7, 0, 1, 0), (7, 1, 0, 0)], 18, 1),
        # It is mended by 9, and strikes at 9 again: no iteration lay between.
        ([(7, 0, 0, 0), (9, 0, 0, 0)], 4, 2),
        # The lost machine comes last: from its own heartbeat.
        ([(6, 1, 0, 0), (7, 0, 1, 0)], 19, 1),
    ]:
        tally, _ = all_three(bare, operations, [[0], [1]], rows, horizon_ns=99)
        assert (tally.detection_ns, tally.recoveries) == (detected_ns, recoveries)


@pytest.mark.parametrize("fleet", [0, 3])
def test_those_around_a_lost_machine_tell_if_a_standby_is_there(all_three, fleet: int) -> None:
    # Polls would know a machine lost at 1 at 15, one lost at 7 at 25; its neighbours at 4 and 10.
    bare = StrategyCosts(iteration_ns=1000)
    operations = Operations(
        2,
        fleet=fleet,
        standbys=0 if fleet else 1,
        heartbeat_ns=3,
        poll_ns=5,
        misses=3,
        unreached_ns=3,
    )
    long_ns = 500
    for rows, detected_ns in [
        ([(1, 0, 1, long_ns)], 3),
        # One standby: for the second loss the polls count, and the recovery waits for it.
        ([(1, 0, 1, long_ns), (1, 1, 1, long_ns)], 14),
        ([(1, 0, 1, long_ns), (7, 1, 1, long_ns)], 3 + 18),
        # A process that exits is no lost machine: nobody sees it here.
        ([(1, 0, 0, 0)], 14),
    ]:
        tally, _ = all_three(bare, operations, [[0], [1]], rows, horizon_ns=99)
        assert tally.detection_ns == detected_ns, rows


def test_a_fleet_machine_that_fails_in_its_repair(all_three) -> None:
    # Two machines for one position. 0 fails at 10, back at 60; 1 takes over at once.
    # 0 fails again at 30, in repair: until 50 would change nothing, until 130 it lasts longer.
    # 1 fails at 70, back at 200. The job waits: to 130 for machine 0.
    bare = StrategyCosts(iteration_ns=1000)
    fleet = Operations(1, fleet=2)
    first, third = (10, 0, 1, 50), (70, 1, 1, 130)
    for second, there_ns in [((30, 0, 1, 20), 70), ((30, 0, 1, 100), 130)]:
        tally, _ = all_three(bare, fleet, [[0]], [first, second, third], horizon_ns=300)
        assert tally.replacement_wait_ns == there_ns - 70
        assert (tally.hardware_failures, tally.spare_failures) == (2, 1)
        # In the first case machine 0, back at 60, stood by at 70.
        assert tally.standby_empty == (1 if there_ns > 70 else 0)
    # Software failures of a spare or a machine in repair hit nobody.
    rows = [first, (20, 0, 0, 0), (65, 0, 0, 0)]
    tally, _ = all_three(bare, fleet, [[0]], rows, horizon_ns=300)
    assert (tally.software_failures, tally.spare_failures) == (0, 2)
    assert tally.useful_ns == 290


def test_machines_back_at_one_instant_stand_by_in_the_order_of_their_failures(all_three) -> None:
    # One position, four machines. 1, 2, 3 stand by and fail at 10, 20, 30; all are back at 50.
    # At 60 position 0 goes to 1, at 70 to 2; so at 80 a software failure of 2 hits the job, and
    # at 90 and 95 those of 3, which stands by, and of 1, which is in repair, do not.
    rows = [
        (10, 1, 1, 40),
        (20, 2, 1, 30),
        (30, 3, 1, 20),
        (60, 0, 1, 500),
        (70, 1, 1, 500),
        (80, 2, 0, 0),
        (90, 3, 0, 0),
        (95, 1, 0, 0),
    ]
    bare = StrategyCosts(iteration_ns=1000)
    tally, _ = all_three(bare, Operations(1, fleet=4), [[0]], rows, horizon_ns=100)
    assert (tally.hardware_failures, tally.software_failures, tally.spare_failures) == (2, 1, 5)
    assert tally.useful_ns == 20


def test_a_machine_of_the_trace_that_is_not_in_the_job(all_three) -> None:
    # Machines 1 and 2 stand by. 2 fails at 10 for 500: nothing happens to the job. At 20
    # position 0 goes to 1. At 30 machine 1, now at work, fails: nobody is left until 0 is back,
    # at 90.
    bare = StrategyCosts(iteration_ns=1000)
    rows = [(10, 2, 1, 500), (20, 0, 1, 70), (30, 1, 1, 400)]
    tally, sources = all_three(bare, Operations(1, fleet=3), [[0]], rows, horizon_ns=200)
    assert sources == [SCRATCH, SCRATCH]
    assert tally == Tally(
        wall_ns=200,
        useful_ns=110,
        lost_progress_ns=20 + 10,
        replacement_wait_ns=60,
        recoveries=2,
        hardware_failures=2,
        spare_failures=1,
        standby_empty=1,
        recovered_scratch=2,
    )


def test_a_software_failure_may_take_memory_with_it(all_three) -> None:
    # Just-in-time checkpointing: the trainer's memory dies with its process, the pair's lives.
    trainer = GEMINI._replace(memory_in_trainer=1)
    _, sources = all_three(trainer, Operations(4), PAIRS, [(250, 0, 0, 0)], horizon_ns=400)
    assert sources == [PEER]
    rows = [(250, 0, 0, 0), (250, 1, 0, 0)]
    _, sources = all_three(trainer, Operations(4), PAIRS, rows, horizon_ns=400)
    assert sources == [SCRATCH, SCRATCH]


def test_the_end_within_a_recovery_keeps_what_would_be_restored(all_three) -> None:
    # As the first case, cut off at 240 in serialisation: iteration 1 is kept, 130 are lost.
    tally, sources = all_three(GEMINI, Operations(4), PAIRS, [(230, 2, 0, 0)], horizon_ns=240)
    assert len(sources) == 1
    assert (tally.useful_ns, tally.lost_progress_ns, tally.iterations) == (100, 130, 1)
    assert (tally.serialisation_ns, tally.recovered_pending, tally.recoveries) == (10, 1, 0)


def test_a_target_ends_the_run_without_a_last_checkpoint(all_three) -> None:
    # 3 iterations with a stall of 30 after each but the last.
    profile = StrategyCosts(iteration_ns=100, storage_every=1, storage_stall_ns=30)
    tally, _ = all_three(profile, Operations(1), [[0]], [], target_iterations=3)
    assert (tally.wall_ns, tally.useful_ns, tally.checkpoint_stall_ns) == (360, 300, 60)

"""Young, Daly, CheckFreq and just-in-time against their own formulas, worked out by hand.

One job of round numbers: 4 machines, 100 GB of state, so a shard of 25 GB; torch.save takes 10 s of
it, storage 8 s of all of it, a copy from the GPU 20 s, an iteration 10 s.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from castor_sim import jump_engine
from castor_sim.job import Job
from castor_sim.strategies import CheckFreq, Daly, JustInTime, Young
from castor_sim.strategy_costs import StrategyCosts, check_costs
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations, Tally

S = 1_000_000_000
ITERATION_S, SAVE_S, WRITE_S, COPY_S, WARM_UP_S = 10, 10, 8, 20, 50
MTBF_S = 40_000.0

JOB = Job(
    machines=4,
    gpus_per_machine=8,
    replicas=2,
    iteration_ns=ITERATION_S * S,
    network_idle_ns=S,
    checkpoint_bytes=100 * 10**9,
    network_bps=100 * 10**9,
    storage_bps=100 * 10**9,
    gpu_to_cpu_bps=10 * 10**9,
    torch_save_bps=20 * 10**9,
    warm_up_ns=WARM_UP_S * S,
    detection_ns=15 * S,
    interruptions_per_s=1 / MTBF_S,
)


def undisturbed(profile: StrategyCosts, iterations: int) -> Tally:
    """Run until so many iterations are done, with nothing failing."""
    check_costs(profile)
    operations = Operations(
        positions=4, fleet=0, standbys=0, dedicated=0, activation_ns=0, heartbeat_ns=3 * S,
        poll_ns=5 * S, misses=3, exit_ns=-1,
    )  # fmt: skip
    nothing: list[Strikes] = []
    return jump_engine.run(
        profile,
        operations,
        jump_engine.replica_array([[0, 1], [1, 0], [2, 3], [3, 2]]),
        nothing,
        horizon_ns=10**18,
        target_iterations=iterations,
    )


def test_the_job_is_what_this_page_says() -> None:
    assert JOB.serialisation_ns() == SAVE_S * S
    assert JOB.storage_ns() == WRITE_S * S
    assert JOB.gpu_copy_ns() == COPY_S * S


@pytest.mark.parametrize("mtbf_s", [400.0, 40_000.0, 4e6])
def test_young_stops_for_save_and_write_at_the_root_of_two_delta_m(mtbf_s: float) -> None:
    profile = Young().costs(replace(JOB, interruptions_per_s=1 / mtbf_s))
    delta_s = SAVE_S + WRITE_S
    assert profile.storage_every == max(1, round(math.sqrt(2 * delta_s * mtbf_s) / ITERATION_S))
    assert profile.storage_stall_ns == delta_s * S
    assert profile.storage_transfer_ns == 0, "nothing goes on beside training"
    assert profile.retrieve_storage_ns == (WRITE_S + SAVE_S) * S, "read back, then torch.load"
    assert profile.memory_every == 0


@pytest.mark.parametrize("mtbf_s", [400.0, 40_000.0, 4e6])
def test_daly_takes_his_higher_order_interval_over_the_same_delta(mtbf_s: float) -> None:
    profile = Daly().costs(replace(JOB, interruptions_per_s=1 / mtbf_s))
    delta_s = SAVE_S + WRITE_S
    ratio = delta_s / (2 * mtbf_s)
    interval_s = math.sqrt(2 * delta_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - delta_s
    assert profile.storage_every == max(1, round(interval_s / ITERATION_S))
    assert profile.storage_stall_ns == delta_s * S
    assert profile.storage_transfer_ns == 0


@pytest.mark.parametrize("strategy", [Young, Daly])
def test_without_failures_they_take_no_checkpoint(strategy: type[Young]) -> None:
    assert strategy().costs(replace(JOB, interruptions_per_s=0.0)).storage_every == 0


@pytest.mark.parametrize("strategy", [Young, Daly])
def test_a_run_pays_the_whole_delta_for_each_checkpoint(strategy: type[Young]) -> None:
    profile = strategy().costs(JOB)
    every = profile.storage_every
    tally = undisturbed(profile, 10 * every + 1)
    assert tally.checkpoint_stall_ns == 10 * (SAVE_S + WRITE_S) * S
    assert tally.wall_ns == (10 * every + 1) * ITERATION_S * S + tally.checkpoint_stall_ns


@pytest.mark.parametrize("budget", [0.035, 0.1, 1.0])
def test_checkfreq_stalls_for_what_the_iteration_does_not_hide(budget: float) -> None:
    """A snapshot of 20 s over an iteration of 10 s; then 10 s of save and 8 s of write follow."""
    profile = CheckFreq(stall_budget=budget).costs(JOB)
    stall_s = COPY_S - ITERATION_S
    persist_s = ITERATION_S + SAVE_S + WRITE_S
    assert profile.storage_stall_ns == stall_s * S
    assert profile.storage_transfer_ns == persist_s * S
    for_budget = math.ceil(stall_s / (budget * ITERATION_S))
    assert profile.storage_every == max(math.ceil(persist_s / ITERATION_S), for_budget)
    tally = undisturbed(profile, 5 * profile.storage_every + 1)
    assert tally.checkpoint_stall_ns == 5 * stall_s * S
    trained_ns = (5 * profile.storage_every + 1) * ITERATION_S * S
    assert tally.checkpoint_stall_ns <= budget * trained_ns


def test_a_snapshot_that_the_iteration_hides_costs_nothing_and_persists_before_the_next() -> None:
    fast = replace(JOB, gpu_to_cpu_bps=40 * 10**9)  # 5 s
    profile = CheckFreq().costs(fast)
    assert profile.storage_stall_ns == 0
    assert profile.storage_transfer_ns == (5 + SAVE_S + WRITE_S) * S
    assert profile.storage_every == 3, "23 s do not fit into two iterations"


def test_just_in_time_pays_nothing_until_a_failure_and_then_save_and_write() -> None:
    profile = JustInTime().costs(JOB)
    assert (profile.memory_every, profile.memory_stall_ns, profile.memory_transfer_ns) == (1, 0, 0)
    assert profile.memory_in_trainer == 1, "a crashed process loses its own state"
    assert profile.serialise_ns == (SAVE_S + WRITE_S) * S
    assert profile.retrieve_own_ns == (WRITE_S + SAVE_S) * S, "all ranks read it back"
    assert profile.storage_every == 3 * 3600 // ITERATION_S
    assert profile.storage_stall_ns == SAVE_S * S
    never = JustInTime(persist_every=0).costs(JOB)
    assert undisturbed(never, 100).checkpoint_stall_ns == 0


@pytest.mark.parametrize(
    ("options", "save_s", "load_s"),
    [({"save": "3s"}, 3, SAVE_S), ({"load": "4s"}, SAVE_S, 4), ({"save": 0, "load": 0}, 0, 0)],
)
def test_given_times_of_save_and_load_go_before_the_rates(
    options: dict[str, object], save_s: int, load_s: int
) -> None:
    profile = Young.model_validate(options).costs(JOB)
    assert profile.storage_stall_ns == (save_s + WRITE_S) * S
    assert profile.retrieve_storage_ns == (WRITE_S + load_s) * S

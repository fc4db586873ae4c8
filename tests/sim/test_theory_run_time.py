"""Expected run times against Daly's cost function, and losses against the paper's Eq. 1."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from castor_policy.frequency import expected_run_time_s, wasted_time_s
from castor_sim.run import run_once
from castor_sim.setup import load_setup
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.tally import Operations, Tally
from castor_traces.failure_stream import MAX_HORIZON_NS
from castor_traces.generators import PoissonFailures
from castor_traces.marks import Marks

NS_PER_S = 10**9
SOFTWARE_ONLY = Marks(hardware_share=0.0)


def daly_s(segments: int, interval_s: float, cost_s: float, restart_s: float, mtbf_s: float):
    """Daly's complete function; the last segment needs no checkpoint, for the run ends with it."""
    saved = expected_run_time_s(
        (segments - 1) * interval_s, interval_s, cost_s, restart_s, mtbf_s, True
    )
    return saved + expected_run_time_s(interval_s, interval_s, 0.0, restart_s, mtbf_s, True)


@pytest.mark.parametrize("tier", ["storage", "memory"])
@pytest.mark.parametrize(
    ("mtbf_s", "iterations", "cost_s", "restart_s"),
    [
        (36_000, 10, 60, 600),  # failures rare: a period is a fiftieth of the MTBF
        (3_600, 10, 60, 600),
        (3_600, 60, 300, 0),  # a period longer than the MTBF
        (1_800, 10, 60, 1_200),  # two restarts of three are hit again
        (1_800, 1, 0, 300),  # every iteration, at no cost
    ],
)
def test_poisson_failures_cost_what_daly_says(
    tier, mtbf_s, iterations, cost_s, restart_s, jump, from_process, assert_mean
) -> None:
    # The checkpoint blocks (no transfer beside training). All of the restart is warm-up, since
    # a start from scratch retrieves nothing, and Daly's restarts all take R. Software failures
    # leave memory whole, so that both tiers are Daly's model.
    iteration_s, segments, replications = 60, 400, 200
    profile = StrategyCosts(
        iteration_ns=iteration_s * NS_PER_S,
        **{f"{tier}_every": iterations, f"{tier}_stall_ns": cost_s * NS_PER_S},
        warm_up_ns=restart_s * NS_PER_S,
    )
    machines = 16
    failures = PoissonFailures(machines, 1 / mtbf_s / machines, marks=SOFTWARE_ONLY)
    interval_s = iterations * iteration_s
    replicas = [[n, n ^ 1] for n in range(machines)]
    walls = []
    for seed in range(replications):
        tally = jump(
            profile,
            Operations(machines),
            replicas,
            from_process(failures, seed, MAX_HORIZON_NS),
            target_iterations=segments * iterations,
        )
        assert tally.iterations == segments * iterations
        assert tally.useful_ns == segments * interval_s * NS_PER_S
        walls.append(tally.wall_ns / NS_PER_S)
    expected = daly_s(segments, interval_s, cost_s, restart_s, mtbf_s)
    # 400 segments x 200 runs: the coefficient of variation of a segment is at most about 1.7 here
    # (geometric tries), so 1.7 / sqrt(80,000) = 0.6 % is the largest standard error.
    assert_mean(walls, expected, precision=0.006)


def test_restarts_that_cannot_fail_are_told_apart(jump, from_process) -> None:
    # With R = 2 M / 3 the two formulas differ by e^{2/3} / (1 + 2/3) = 1.17: many times the
    # error of the test above, which therefore would notice a restart that no failure can hit.
    sure = expected_run_time_s(1e6, 600, 60, 1200, 1800, False)
    complete = expected_run_time_s(1e6, 600, 60, 1200, 1800, True)
    assert complete / sure == pytest.approx(math.exp(2 / 3) / (5 / 3))
    assert complete / sure > 1 + 5 * 0.006


EXPERIMENT = """
name = "eq1"
cluster = "p4d"
model = "gpt2-100b"
duration = "3650d"

[failures]
process = "regular"
per_day = 2.0
hardware_share = 0.0

[strategies.strawman]
save = "0s"
[strategies.highfreq]
save = "0s"
[strategies.gemini]
"""


@pytest.fixture(scope="module")
def eq1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[StrategyCosts, list[Tally]]]:
    file: Path = tmp_path_factory.mktemp("eq1") / "eq1.toml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    setup = load_setup(file)
    return {
        name: (profile, [run_once(setup, name, seed) for seed in range(20)])
        for name, profile in setup.costs.items()
    }


@pytest.mark.parametrize("strategy", ["strawman", "highfreq", "gemini"])
def test_a_failure_loses_what_equation_1_says(strategy, eq1, assert_mean) -> None:
    """Mean progress lost is t_ckpt + 1/(2f), Gemini Eq. 1, on the 16-machine paper job.

    Two failures a day, one in each half-day slot: by far no overlap. torch.save is set to 0 s:
    the paper counts its stall in t_ckpt, the simulator in a part of its own.
    """
    profile, tallies = eq1[strategy]
    tier = "memory" if profile.memory_every else "storage"
    every = profile.memory_every or profile.storage_every
    transfer_s = getattr(profile, f"{tier}_transfer_ns") / NS_PER_S
    period_s = every * profile.iteration_ns / NS_PER_S
    lost = [t.lost_progress_ns / NS_PER_S / t.software_failures for t in tallies]
    # Within a slot of 12 h failures are uniform, so the time from one to the next, modulo the
    # period, is uniform but for the part of a period that the slot does not hold whole: a change
    # of the density by a share of period / slot at most, of a value that stays within a period;
    # as the two ends of the slot cancel, its square. A failure within t_ckpt of a resumption
    # finds the restored checkpoint complete already (gap density near 0: gap / slot^2) and loses a
    # period less.
    slot_s = 43_200.0
    bias = period_s * ((period_s / slot_s) ** 2 + 0.5 * ((transfer_s + 1000) / slot_s) ** 2)
    expected = wasted_time_s(transfer_s, 1 / period_s, 0.0)
    # 7,300 failures x 20 seeds, each loss uniform over a period (standard deviation 0.29 of it).
    assert_mean(lost, expected, precision=0.002, bias=bias)


@pytest.mark.parametrize("strategy", ["strawman", "highfreq", "gemini"])
def test_downtime_after_a_failure_is_the_sum_of_its_parts(strategy, eq1) -> None:
    """Beside the lost progress each failure costs the same parts; Eq. 1's t_rtvl is one of them.

    A recovery that ran to its end spent every part whole, and one that a further failure or the
    end of the run cut off (two of 7,300 here) no more than that.
    """
    profile, tallies = eq1[strategy]
    for tally in tallies:
        ended, begun = tally.recoveries, tally.software_failures
        assert begun - 5 <= ended <= begun
        in_memory = bool(profile.memory_every)
        own = tally.recovered_own_memory if in_memory else tally.recovered_storage
        # In one of the 20 runs the first failure comes before the first checkpoint.
        assert own == begun - tally.recovered_pending - tally.recovered_scratch
        assert tally.recovered_scratch <= 1
        retrieve_ns = profile.retrieve_own_ns if in_memory else profile.retrieve_storage_ns
        # 3 misses of 5 s behind a heartbeat of 3 s: 12 s to 20 s (Gemini, Fig. 14: 15 s).
        for spent_ns, least_ns, most_ns in (
            (tally.detection_ns, 12 * NS_PER_S, 20 * NS_PER_S),
            (tally.serialisation_ns, profile.serialise_ns, profile.serialise_ns),
            (tally.retrieval_ns, retrieve_ns, retrieve_ns),
            (tally.warm_up_ns, profile.warm_up_ns, profile.warm_up_ns),
        ):
            first_ns = 0 if tally.recovered_scratch else least_ns
            assert (ended - 1) * least_ns + first_ns <= spent_ns <= begun * most_ns
        assert tally.replacement_wait_ns == 0

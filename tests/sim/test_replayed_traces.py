"""Traces larger than the job, thinned, shuffled, with failure domains: what a replication meets."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_analysis.summary import interval_of
from castor_configs.errors import InputError
from castor_sim.run import run_once
from castor_sim.setup import Setup, load_setup
from castor_traces.domains import domain_numbers
from castor_traces.edit import rescale
from castor_traces.trace import Failure, Trace, make_trace
from castor_traces.write import write_trace

S = 1_000_000_000
HOUR_NS = 3600 * S

EXPERIMENT = """
name = "replayed"
cluster = "p4d"
model = "gpt2-100b"
machines = {machines}
replicas = {replicas}
seeds = 4
[training]
iteration = "10s"
checkpoint_size = "100GB"
[replacement]
operator = "{operator}"
[failures]
process = "trace"
trace = "trace.csv"
rescale = {rescale}
[strategies.daly]
"""


def setup_of(
    folder: Path,
    trace: Trace,
    *overrides: str,
    machines: int,
    replicas: int = 1,
    operator: str = "fleet",
    rescale: bool = False,
) -> Setup:
    write_trace(trace, folder / "trace.csv")
    path = folder / "experiment.toml"
    path.write_text(
        EXPERIMENT.format(
            machines=machines, replicas=replicas, operator=operator, rescale=str(rescale).lower()
        )
    )
    return load_setup(path, overrides)


def halves() -> Trace:
    """200 instants in a year at which 50 of 100 machines fail; shared/cases has one drawn so."""
    failures = [
        Failure((number + 1) * 43 * HOUR_NS, (7 * machine + 13 * number) % 100, "hardware", 60 * S)
        for number in range(200)
        for machine in range(50)
    ]
    return make_trace("half", 100, 365 * 24 * HOUR_NS, failures)


def test_daly_gets_the_interruptions_of_a_small_job_under_joint_failures(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, halves(), machines=2)
    hit = 1 - (50 * 49) / (100 * 99)
    assert 1 / setup.job.interruptions_per_s == pytest.approx(365 * 86_400 / (200 * hit))
    ratio = run_once(setup, "daly", 1).useful_ns / setup.horizon_ns
    assert ratio > 0.955, "an MTBF of 91 days instead of 2.4 loses 9 %"


def lemons() -> Trace:
    """A few machines of 64 that fail every other day: which of them a job gets is luck."""
    failures = [
        Failure(number * 2 * 24 * HOUR_NS + machine * HOUR_NS, machine * 16, "hardware", HOUR_NS)
        for number in range(90)
        for machine in range(4)
    ]
    return make_trace("lemons", 64, 180 * 24 * HOUR_NS, failures)


def test_each_replication_is_thinned_anew_so_that_intervals_cover_each_other(
    tmp_path: Path,
) -> None:
    setup = setup_of(tmp_path, lemons(), "seeds=24", machines=8, operator="cloud", rescale=True)
    intervals = []
    for first in (1, 101, 201, 301):
        ratios = [
            run_once(setup, "daly", seed).useful_ns / setup.horizon_ns
            for seed in range(first, first + 24)
        ]
        assert len(set(ratios)) > 2, "one thinning for all"
        intervals.append(interval_of(ratios))
    assert max(one.low for one in intervals) < min(one.high for one in intervals)


def racks() -> Trace:
    failures = [
        Failure((number + 1) * 100 * HOUR_NS, 4 * (number % 4) + place, "hardware", HOUR_NS,
                domain=f"rack-{number % 4}")
        for number in range(40)
        for place in range(4)
    ]  # fmt: skip
    return make_trace("racks", 16, 5000 * HOUR_NS, failures)


def test_domain_placement_follows_the_racks_that_the_trace_names(tmp_path: Path) -> None:
    changes = ('placement="domains"', 'strategies={gemini={serialise="0s"}}')
    setup = setup_of(tmp_path, racks(), *changes, machines=16, replicas=2, operator="cloud")
    for seed in range(1, 6):
        trace = setup.replayed(seed)
        assert trace is not None
        racks_of = domain_numbers(trace, 16)
        assert racks_of is not None
        placed = setup.placement("gemini", seed)
        assert all(len({racks_of[m] for m in row}) == 2 for row in placed.replicas)
        tally = run_once(setup, "gemini", seed)
        assert tally.recovered_storage + tally.recovered_scratch == 0
        assert tally.recovered_peer > 100
    groups = setup_of(tmp_path, racks(), changes[1], machines=16, replicas=2, operator="cloud")
    tally = run_once(groups, "gemini", 1)
    assert tally.recovered_storage + tally.recovered_scratch > 100, "neighbours are in one rack"


def test_racks_stay_whole_in_a_thinned_trace(tmp_path: Path) -> None:
    changes = ('placement="domains"', 'strategies={gemini={serialise="0s"}}')
    setup = setup_of(
        tmp_path, racks(), *changes, machines=12, replicas=2, operator="cloud", rescale=True
    )
    partitions = set()
    for seed in range(1, 9):
        trace = setup.replayed(seed)
        assert trace is not None
        racks_of = domain_numbers(trace, 12)
        assert racks_of is not None
        partitions.add(tuple(racks_of))
        placed = setup.placement("gemini", seed)
        assert all(len({racks_of[m] for m in row}) == 2 for row in placed.replicas)
    assert len(partitions) > 1


def test_domains_that_nothing_names_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"and the trace names none"):
        setup_of(
            tmp_path, lemons(), 'strategies={gemini={placement="domains"}}', machines=64, replicas=2
        )


def test_a_replication_replays_what_rescale_gives_for_its_seed(tmp_path: Path) -> None:
    setup = setup_of(
        tmp_path, lemons(), "failures.shuffle=false", machines=8, operator="cloud", rescale=True
    )
    assert setup.trace is not None
    assert setup.replayed(3) == rescale(setup.trace, 8, 3)
    assert setup.replayed(3) != setup.replayed(4)

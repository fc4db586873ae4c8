"""Measured profiles: their steps as a timeline, other bandwidths, files and their faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_configs.dump import dump_toml
from castor_configs.errors import InputError
from castor_sim.iteration.case import load_iteration, measured_case
from castor_sim.iteration.engine import run_iteration
from castor_sim.iteration.measured import FORMAT, MeasuredProfile, load_profile
from castor_sim.iteration.measured_steps import (
    Compute,
    Issue,
    Step,
    Wait,
    parse_step,
    step_line,
    step_tasks,
)
from castor_sim.iteration.run import IterationReport, simulate_iteration
from castor_sim.iteration.timeline import COPY_LANE, Traffic
from castor_sim.iteration_config import IterationConfig

deterministic = settings(
    derandomize=True, deadline=None, max_examples=4 * settings.default.max_examples // 5
)

MS = 10**6
GBPS = 10**9

PROFILE = """
format = "castor-iteration-profile-2"
name = "four hosts"
shard = "10MB"
gpus = 2
link = "8Gbps"
update = "3ms"
steps = [
    "compute 5ms",
    "issue all_gather_into_tensor 10MB 20ms",
    "wait 0",
    "compute 4ms",
    "issue reduce_scatter_tensor 5MB 10ms",
    "wait 1",
    "compute 8ms",
]

[network]
bandwidth = "8Gbps"

[copy]
bandwidth = "16Gbps"

[collectives]
alpha = "2ms"
wire_share = {all_gather_into_tensor = 0.75}
"""


def profile(**changes: Any) -> MeasuredProfile:
    figures: dict[str, Any] = {
        "format": FORMAT,
        "name": "four hosts",
        "shard": "10MB",
        "link": "8Gbps",
        "update": "3ms",
        "network": {"bandwidth": "8Gbps"},  # a byte a nanosecond
        "steps": ["compute 5ms", "issue all_gather 1MB 20ms", "wait 0", "compute 8ms"],
        **changes,
    }
    return MeasuredProfile.model_validate(figures)


def simulated(of: MeasuredProfile, **config: Any) -> IterationReport:
    changed = {"buffer": "4MB", "mu": 1.0, **config}
    return simulate_iteration(
        measured_case(of, IterationConfig.model_validate(changed), replicas=2)
    )


@dataclass
class Thread:
    """What steps mean, told a second time: one clock of the thread, one of the network."""

    now_ns: int = 0
    free_ns: int = 0
    ended_ns: list[int] = field(default_factory=list)

    def run(self, steps: list[Step], update_ns: int) -> int:
        for step in steps:
            match step:
                case Compute(duration_ns):
                    self.now_ns += duration_ns
                case Issue(_, _, duration_ns):
                    self.free_ns = max(self.now_ns, self.free_ns) + duration_ns
                    self.ended_ns.append(self.free_ns)
                case Wait(number):
                    self.now_ns = max(self.now_ns, self.ended_ns[number])
        return max(self.now_ns, self.free_ns) + update_ns


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = [Compute(draw(st.integers(1, 50)))]
    issued = 0
    for _ in range(draw(st.integers(0, 25))):
        kind = draw(st.sampled_from(["compute", "issue", "wait"]))
        if kind == "compute":
            steps.append(Compute(draw(st.integers(0, 50))))
        elif kind == "issue":
            steps.append(Issue("all_gather", 8, draw(st.integers(0, 50))))
            issued += 1
        elif issued:
            steps.append(Wait(draw(st.integers(0, issued - 1))))
    return steps


@deterministic
@given(steps=programs(), update_ns=st.integers(0, 9))
def test_steps_take_as_long_as_a_thread_and_a_network_do(steps: list[Step], update_ns: int) -> None:
    run = run_iteration(step_tasks(steps, update_ns))
    assert run.end_ns == Thread().run(steps, update_ns)


@deterministic
@given(steps=programs())
def test_a_step_is_written_and_read_to_the_nanosecond(steps: list[Step]) -> None:
    assert [parse_step(step_line(step)) for step in steps] == steps
    held = profile(steps=steps)
    assert held.steps == steps


def test_a_wait_that_never_blocks_costs_nothing() -> None:
    steps = ["compute 5ms", "issue all_gather 1MB 20ms", "compute 21ms", "wait 0", "compute 1ms"]
    assert simulated(profile(steps=steps)).baseline.iteration_ns == 30 * MS
    steps[2] = "compute 19ms"
    assert simulated(profile(steps=steps)).baseline.iteration_ns == 29 * MS


def test_a_measured_profile_is_the_timeline(tmp_path: Path) -> None:
    file = tmp_path / "profile.toml"
    file.write_text(PROFILE, encoding="utf-8")
    held = load_profile(file)
    setup = load_iteration("gpt2-40b-p3dn", (), held)
    report = simulate_iteration(setup.case)
    assert report.baseline.iteration_ns == 50 * MS
    assert [span.idle_ns for span in report.spans[0]] == [5 * MS, 4 * MS, 8 * MS]
    # 10 ms of chunks: 80 % of 5 and 4 ms, the rest in the last span.
    assert report.results["pipelined"].iteration_ns == 50 * MS
    assert report.results["pipelined"].checkpoint_ns == 10 * MS
    assert report.results["blocking"].iteration_ns == 60 * MS
    written = tmp_path / "again.toml"
    written.write_text(dump_toml(held), encoding="utf-8")
    assert load_profile(written) == held


def test_another_bandwidth_changes_what_bytes_cost_and_nothing_else() -> None:
    held = profile(
        steps=["compute 5ms", "issue all_gather 4MB 6ms", "issue barrier 0B 1ms", "wait 0"],
        network={"alpha": "1ms", "bandwidth": "8Gbps"},
        collectives={"alpha": "2ms", "wire_share": {"all_gather": 0.75}},
        copy={"bandwidth": "16Gbps"},
        commit="2ms",
    )
    halved = held.at_link(4 * GBPS)
    # 3 of the 6 ms were the wire's; what is not in the fit stays.
    assert halved.steps[1:3] == [
        Issue("all_gather", 4 * 10**6, 9 * MS),
        Issue("barrier", 0, MS),
    ]
    assert (halved.network.alpha, halved.network.bandwidth) == (MS, 4 * GBPS)
    assert (halved.copy_to_cpu, halved.commit, halved.update) == (
        held.copy_to_cpu,
        held.commit,
        held.update,
    )
    assert halved.link == 4 * GBPS
    assert held.at_link(8 * GBPS) == held
    assert halved.at_link(8 * GBPS) == held
    assert held.at_link(800 * GBPS).steps[1] == Issue("all_gather", 4 * 10**6, 3 * MS + 30_000)
    # More than was measured cannot have been the wire's.
    short = held.model_copy(update={"steps": [Issue("all_gather", 4 * 10**6, MS)]})
    assert short.at_link(4 * GBPS).steps == [Issue("all_gather", 4 * 10**6, 2 * MS)]
    assert short.at_link(16 * GBPS).steps == [Issue("all_gather", 4 * 10**6, MS // 2)]


def test_a_profile_scales_only_from_a_rate_that_it_knows() -> None:
    with pytest.raises(ValueError, match="set link"):
        profile(link="").at_link(GBPS)
    with pytest.raises(ValueError, match="more than 0 bit/s"):
        profile().at_link(0)


def test_without_a_copy_hop_chunks_arrive_in_cpu_memory() -> None:
    with_hop, without = (
        simulated(profile(**of)) for of in ({"copy": {"bandwidth": "4Gbps"}}, {"copy": None})
    )
    # 10 chunks of 1 ms; with a copy of 2 ms each, the 10th waits for a sub-buffer until the 6th
    # was copied, at 13 ms.
    assert with_hop.results["blocking"].iteration_ns == with_hop.baseline.iteration_ns + 14 * MS
    blocking = without.results["blocking"]
    assert blocking.iteration_ns == without.baseline.iteration_ns + 10 * MS
    assert blocking.complete_ns == 10 * MS
    for result in without.results.values():
        assert not [i for i in result.intervals if i.lane == COPY_LANE]
        assert result.sent_bytes == (0 if result.scheme == "none" else 10**7)


def test_the_own_replica_is_captured_before_the_first_chunk_leaves() -> None:
    report = simulated(profile(capture="2ms"))
    for name in ("blocking", "pipelined"):
        chunks = [i for i in report.results[name].intervals if i.kind == Traffic.CHUNK]
        assert min(chunk.start_ns for chunk in chunks) == 2 * MS
    # Training waits for the capture with blocking alone.
    assert report.results["blocking"].iteration_ns == report.baseline.iteration_ns + 12 * MS
    none = next(i for i in report.results["pipelined"].intervals if i.task == 0)
    assert none.start_ns == 0


def test_the_first_chunk_of_a_span_waits_for_the_other_end() -> None:
    plain, late = (simulated(profile(late=late)) for late in ("0ms", "0.25ms"))
    for name in ("pipelined", "unpipelined", "naive"):
        spans = sum(bool(span.chunks) for span in late.results[name].schedules[0].spans)
        assert spans > 1
        longer_ns = late.results[name].checkpoint_ns - plain.results[name].checkpoint_ns
        assert longer_ns == spans * MS // 4
    # All at once: no rank has anything else to do.
    assert late.results["blocking"] == plain.results["blocking"]


def test_what_the_update_sends_is_no_idle_time_and_no_span() -> None:
    plain, busy = (simulated(profile(update_traffic=of)) for of in ("0ms", "2ms"))
    assert busy.spans == plain.spans
    for name, result in busy.results.items():
        assert result.iteration_ns == plain.results[name].iteration_ns
        assert result.idle_ns == plain.results[name].idle_ns - 2 * MS
        assert result.complete_ns == plain.results[name].complete_ns


def test_the_commit_delays_the_update_only_where_it_ends_last() -> None:
    # The last span has 8 ms, of which chunks take 5 ms: the others went in the first.
    for commit, late_ms in (("3ms", 0), ("4ms", 1), ("9ms", 6)):
        report = simulated(profile(commit=commit, shard="10MB"))
        pipelined = report.results["pipelined"].iteration_ns
        assert pipelined == report.baseline.iteration_ns + late_ms * MS
        blocking = report.results["blocking"].iteration_ns
        assert blocking == report.baseline.iteration_ns + (10 + int(commit[0])) * MS


def test_the_commit_comes_behind_the_copies() -> None:
    hop = {"bandwidth": "8Gbps"}
    report = simulated(profile(copy=hop))
    waited = simulated(profile(copy=hop, commit="0.001ms"))
    # 10 chunks of 1 MB, the copy of the last (1 ms), then the own replica (10 ms).
    assert report.results["blocking"].iteration_ns == report.baseline.iteration_ns + 10 * MS
    late_ns = waited.results["blocking"].iteration_ns - waited.baseline.iteration_ns
    assert late_ns == (10 + 1 + 10) * MS + 1000


def test_the_commit_waits_for_the_last_chunks_copy() -> None:
    # The own replica, of 1 MB, is copied long before: chunks wait for the last span, of 5 ms.
    steps = ["compute 0.001ms", "issue all_gather 1MB 20ms", "wait 0", "compute 5ms"]
    held = profile(steps=steps, shard="1MB", copy={"alpha": "6ms", "bandwidth": "8Gbps"})
    report = simulated(held)
    assert report.results["pipelined"].iteration_ns == report.baseline.iteration_ns
    late = simulated(held.model_copy(update={"commit": 2 * MS})).results["pipelined"]
    # 1 ms on the network and 7 ms of copying, and the commit: 5 ms later than the span's end.
    assert late.iteration_ns == report.baseline.iteration_ns + (1 + 7 + 2 - 5) * MS


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("profile-2", "profile-1", "castor-iteration-profile-2"),
        ('shard = "10MB"', 'shard = "0B"', "shard"),
        ('update = "3ms"', 'updates = "3ms"', "updates"),
        ('"wait 1"', '"wait 2"', "waits for collective 2, of which 2 were issued"),
        ('"compute 8ms"', '"compute"', 'expected "compute TIME"'),
        ('"compute 8ms"', '"wait -1"', "wait NUMBER"),
        ('"compute 8ms"', '"compute 8 parsecs"', "expected"),
        ("0.75", "-1", "wire_share"),
    ],
)
def test_a_faulty_profile_says_where(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = tmp_path / "profile.toml"
    assert old in PROFILE
    file.write_text(PROFILE.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=words):
        load_profile(file)

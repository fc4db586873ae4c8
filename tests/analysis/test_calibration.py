"""Calibration: what was put into a log comes out of it, and predicts what was not in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_analysis.calibration.calibrate import Calibration, calibrate, jitter_of, steps_of
from castor_analysis.calibration.fit import (
    busy_periods,
    fit_collectives,
    ring_share,
    shared_times,
)
from castor_analysis.calibration.runs import Collective, Timeline, typical_timeline
from castor_configs.errors import InputError
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import TrafficOptions
from castor_records.events.event import Entry, Event
from castor_records.events.training import (
    CheckpointCompleted,
    IterationEnded,
    LinkMeasured,
    Scheduled,
    SpansProfiled,
)
from castor_runtime.launcher.run_folder import RunFolder
from castor_sim.iteration.engine import run_iteration
from castor_sim.iteration.measured_steps import Compute, step_tasks

deterministic = settings(
    derandomize=True, deadline=None, max_examples=4 * settings.default.max_examples // 5
)

MS = 10**6
MBPS = 10**6
RANKS = 4


@dataclass(frozen=True)
class Truth:
    """A program on a network: what the logs are made of."""

    link_bps: int = 300 * MBPS
    efficiency: float = 1 / 1.05  # of B in the nominal rate: headers
    alpha_ns: int = 2 * MS
    gather_share: float = 0.75
    reduce_share: float = 1.5
    layers: int = 6
    layer_bytes: int = 3 << 20
    layer_ns: int = 30 * MS
    update_ns: int = 9 * MS
    update_traffic_ns: int = 5 * MS
    chunks_bytes: tuple[int, ...] = (10**5, 10**6, 400)
    late_ns: int = 3 * MS

    @property
    def bandwidth_bps(self) -> int:
        return round(self.link_bps * self.efficiency)

    def cost_ns(self, share: float, size_bytes: int) -> int:
        return self.alpha_ns + round(share * size_bytes * 8e9 / self.bandwidth_bps)

    def timeline(self) -> Timeline:
        """Return what a rank measures: the next layer is gathered while one is computed."""
        collectives: list[dict[str, Any]] = []
        now_ns = free_ns = 0

        def issue(operation: str, size_bytes: int, share: float) -> None:
            nonlocal free_ns
            start_ns = max(now_ns, free_ns)
            free_ns = start_ns + self.cost_ns(share, size_bytes)
            collectives.append(
                {"operation": operation, "size_bytes": size_bytes, "issued_ns": now_ns}
                | {"ended_ns": free_ns, "waited_ns": -1, "resumed_ns": -1}
            )

        def wait(number: int) -> None:
            nonlocal now_ns
            collectives[number]["waited_ns"] = now_ns
            now_ns = max(now_ns, collectives[number]["ended_ns"])
            collectives[number]["resumed_ns"] = now_ns

        now_ns += 3 * MS
        for layer in range(self.layers):
            size_bytes = self.layer_bytes + 4096 * layer
            issue("all_gather_into_tensor", size_bytes, self.gather_share)
            if layer:
                wait(layer - 1)
                now_ns += self.layer_ns
        wait(self.layers - 1)
        now_ns += self.layer_ns
        for _ in range(self.layers):
            now_ns += 2 * self.layer_ns
            issue("reduce_scatter_tensor", self.layer_bytes, self.reduce_share)
            wait(len(collectives) - 1)
        now_ns += 2 * MS
        for _ in range(2):
            issue("all_reduce", 8, self.reduce_share)
            wait(len(collectives) - 1)
            now_ns += MS
        return Timeline(
            collectives=tuple(Collective(**one) for one in collectives),
            before_update_ns=now_ns,
            update_ns=self.update_ns,
            deviation=0.02,
        )

    @property
    def busy_ns(self) -> int:
        """Time before the update in which a collective is under way."""
        periods = busy_periods(self.timeline().collectives)
        return sum(period.end_ns - period.start_ns for period in periods)

    def chunk_ns(self, size_bytes: int) -> int:
        return MS + round(size_bytes * 8e9 / self.bandwidth_bps)

    @property
    def iteration_ns(self) -> int:
        timeline = self.timeline()
        return timeline.before_update_ns + timeline.update_ns


def profiled(timeline: Timeline, rank: int, late_ns: int = 0) -> dict[str, Any]:
    """Return the fields of a rank's spans_profiled, by docs/formats.md."""
    rows = timeline.collectives
    return {
        "generation": 1,
        "rank": rank,
        "iteration": 8,
        "iterations": 5,
        "spans_ns": [],
        "ops": [one.operation for one in rows],
        "op_bytes": [one.size_bytes for one in rows],
        "issued_ns": [one.issued_ns + late_ns for one in rows],
        "waited_ns": [w if w < 0 else w + late_ns for w in (one.waited_ns for one in rows)],
        "resumed_ns": [w if w < 0 else w + late_ns for w in (one.resumed_ns for one in rows)],
        "ended_ns": [one.ended_ns + late_ns for one in rows],
        "before_update_ns": timeline.before_update_ns + late_ns,
        "iteration_ns": timeline.before_update_ns + timeline.update_ns,
        "update_ns": timeline.update_ns,
        "deviation": timeline.deviation,
    }


def write_run(
    folder: Path,
    truth: Truth,
    *,
    scheme: str = "none",
    arguments: Sequence[str] = ("--layers", "6", "--iterations", "15"),
    timelines: Sequence[Timeline] = (),
    checkpoints: bool = False,
    link_measured: bool = True,
    shard_bytes: int = 19_000_000,
) -> RunFolder:
    """Write the folder of a finished run."""
    folder.mkdir()
    job = JobSpec(
        job=folder.name,
        machines=RANKS,
        ranks_per_machine=1,
        placement="group",
        replicas=((0, 1), (1, 0), (2, 3), (3, 2)),
        script="gpt2_tiny.py",
        arguments=tuple(arguments),
        traffic=TrafficOptions(scheme=scheme, chunk_bytes=1 << 20),
    )
    spec = json.loads(job.to_json())
    cluster = {"name": "cal", "bandwidth_bps": truth.link_bps, "storage_bandwidth_bps": 0}
    (folder / "run.json").write_text(json.dumps({"job": folder.name}), encoding="utf-8")
    result = {"outcome": "finished", "compute": "paced", "spec": spec, "cluster": cluster}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    timelines = timelines or [truth.timeline()] * RANKS
    events: list[Entry[Event]] = []
    for rank, timeline in enumerate(timelines):
        known = {"generation": 1, "rank": rank}
        if link_measured:
            link = {
                "alpha_ns": 900_000,
                "bandwidth_bps": truth.bandwidth_bps + rank,
                "agreed_alpha_ns": MS,
                "agreed_bandwidth_bps": truth.bandwidth_bps // 2,
                "sizes_bytes": [10**5, 10**6],
                # The last rank is late; the others' median is the truth.
                "times_ns": [
                    MS + round(size * 8e9 / truth.bandwidth_bps) + 7 * MS * (rank == RANKS - 1)
                    for size in (10**5, 10**6)
                ],
            }
            events.append(Entry(0, LinkMeasured.of_fields({**known, **link})))
        if shard_bytes:
            stated = {**known, "iteration": 1, "shard_bytes": shard_bytes}
            events.append(Entry(1, Scheduled.of_fields(stated)))
        events.append(Entry(5, SpansProfiled.of_fields(profiled(timeline, rank))))
        for iteration in range(1, 16):
            ended = {**known, "iteration": iteration}
            busy_s = (truth.busy_ns + truth.update_traffic_ns) / 1e9
            fields = {**ended, "train_busy_s": busy_s}
            events.append(Entry(iteration * truth.iteration_ns, IterationEnded.of_fields(fields)))
            if checkpoints:
                chunks_s = sum(truth.chunk_ns(size) for size in truth.chunks_bytes) / 1e9
                seconds = {"captured_s": 0.002, "commit_s": 0.8, "sent_bytes": 19_000_000}
                seconds["network_s"] = chunks_s + 2 * truth.late_ns / 1e9
                fields = {**ended, **seconds}
                events.append(Entry(iteration * MS, CheckpointCompleted.of_fields(fields)))
        if checkpoints:
            chunks: dict[str, Any] = {"iteration": 8, "chunk_spans": [2, 2, 5]}
            chunks["chunk_bytes"] = list(truth.chunks_bytes)
            events.append(Entry(6, Scheduled.of_fields({**known, **chunks})))
    events.sort(key=lambda event: event.time_ns)
    lines = "".join(event.to_line() + "\n" for event in events)
    (folder / "events.jsonl").write_text(lines, encoding="utf-8")
    return RunFolder(folder)


def of_runs(*folders: RunFolder) -> Calibration:
    return calibrate(folders)


def test_what_was_put_into_a_log_comes_out_of_it(tmp_path: Path) -> None:
    truth = Truth()
    found = of_runs(write_run(tmp_path / "a", truth))
    profile, fit = found.profile, found.fit
    assert run_iteration(profile.tasks()).end_ns == truth.iteration_ns
    assert found.iteration_s == pytest.approx([truth.iteration_ns / 1e9] * 2)
    assert fit.alpha_ns == pytest.approx(truth.alpha_ns, rel=0.02)
    assert fit.error < 0.01
    shares = profile.collectives.wire_share
    assert shares["all_gather_into_tensor"] == 0.75
    assert shares["reduce_scatter_tensor"] == shares["all_reduce"] == 1.5
    assert all(one.is_known for one in fit.operations.values())
    assert (profile.machines, profile.replicas, profile.link) == (4, 2, truth.link_bps)
    assert profile.network.alpha == pytest.approx(MS, rel=1e-4)
    assert profile.network.bandwidth == pytest.approx(truth.bandwidth_bps, rel=1e-5)
    assert (profile.compute, profile.shard) == ("paced", 19_000_000)
    assert profile.update_traffic == pytest.approx(truth.update_traffic_ns, abs=2)
    # Two messages and an all-reduce, at their start-up times.
    assert profile.commit == 2 * profile.network.alpha + fit.alpha_ns
    assert set(found.stated) == {"capture", "late"}  # no run took a checkpoint


@pytest.mark.parametrize("link_bps", [100 * MBPS, 200 * MBPS, 450 * MBPS, 900 * MBPS])
def test_another_bandwidth_is_predicted(tmp_path: Path, link_bps: int) -> None:
    truth = Truth()
    profile = of_runs(write_run(tmp_path / "a", truth)).profile
    there = replace(truth, link_bps=link_bps)
    predicted_ns = run_iteration(profile.at_link(link_bps).tasks()).end_ns
    assert predicted_ns == pytest.approx(there.iteration_ns, rel=0.002)


def test_a_share_that_is_no_rings_is_fitted(tmp_path: Path) -> None:
    found = of_runs(write_run(tmp_path / "a", Truth(gather_share=1.2)))
    gather = found.fit.operations["all_gather_into_tensor"]
    assert not gather.is_known
    assert gather.wire_share == pytest.approx(1.2, rel=0.02)
    assert found.fit.operations["reduce_scatter_tensor"].wire_share == 1.5


def test_repetitions_and_a_run_with_checkpoints_add_up(tmp_path: Path) -> None:
    truth = Truth()
    late = Truth(update_ns=15 * MS)
    found = of_runs(
        write_run(tmp_path / "a", truth),
        write_run(tmp_path / "b", late, scheme="blocking", checkpoints=True),
        write_run(tmp_path / "c", late, scheme="pipelined", checkpoints=True),
    )
    # The iteration is that of the run without checkpoints.
    assert run_iteration(found.profile.tasks()).end_ns == truth.iteration_ns
    assert found.profile.capture == 2 * MS
    # What chunks took beyond their transfers, for each of the two spans that carry some.
    assert found.profile.late == pytest.approx(truth.late_ns, rel=1e-3)
    assert found.stated == {}
    assert found.runs == ("a", "b", "c")


def test_the_median_over_ranks_stands_for_all(tmp_path: Path) -> None:
    truth = Truth()
    own = truth.timeline()
    slow = replace(own, update_ns=500 * MS)
    found = of_runs(write_run(tmp_path / "a", truth, timelines=[own, own, own, slow]))
    assert run_iteration(found.profile.tasks()).end_ns == truth.iteration_ns


def test_runs_that_do_not_fit_say_why(tmp_path: Path) -> None:
    truth = Truth()
    good = write_run(tmp_path / "good", truth)
    slow = write_run(tmp_path / "slow", replace(truth, link_bps=200 * MBPS))
    with pytest.raises(InputError, match=r"link_bps 200000000, and good has 300000000"):
        of_runs(good, slow)
    wide = write_run(tmp_path / "wide", truth, arguments=["--hidden", "320"])
    with pytest.raises(InputError, match=r"has arguments --hidden 320, and good has --layers 6"):
        of_runs(good, wide)
    longer = write_run(tmp_path / "longer", truth, arguments=["--layers=6", "--iterations", "99"])
    of_runs(good, longer)
    own = truth.timeline()
    other = replace(own, collectives=own.collectives[:-1])
    torn = write_run(tmp_path / "torn", truth, timelines=[own, own, own, other])
    with pytest.raises(InputError, match="ranks did not do the same: one has 14 collectives"):
        of_runs(torn)
    few = write_run(tmp_path / "few", truth, timelines=[own, own, own])
    with pytest.raises(InputError, match="no profile of an iteration from every rank"):
        of_runs(few)
    unmeasured = write_run(tmp_path / "unmeasured", truth, link_measured=False)
    with pytest.raises(InputError, match="no link_measured"):
        of_runs(unmeasured)
    silent = write_run(tmp_path / "silent", truth, shard_bytes=0)
    with pytest.raises(InputError, match="how much of a checkpoint travels"):
        of_runs(silent)
    assert calibrate([silent], shard_bytes=7).profile.shard == 7
    with pytest.raises(InputError, match="is no run folder"):
        of_runs(RunFolder(tmp_path / "nothing"))
    with pytest.raises(InputError, match="one run or more"):
        of_runs()


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Anything that a rank might measure, consistent or not."""
    collectives = []
    issued_ns = 0
    for _ in range(draw(st.integers(0, 8))):
        issued_ns += draw(st.integers(0, 40))
        ended_ns = issued_ns + draw(st.integers(0, 90))
        waited_ns = draw(st.one_of(st.just(-1), st.integers(0, 60).map(issued_ns.__add__)))
        resumed_ns = waited_ns if waited_ns < 0 else max(waited_ns, ended_ns)
        collectives.append(
            Collective(
                operation=draw(st.sampled_from(["all_gather", "all_reduce"])),
                size_bytes=draw(st.integers(0, 99)),
                issued_ns=issued_ns,
                waited_ns=waited_ns,
                resumed_ns=resumed_ns,
                ended_ns=ended_ns,
            )
        )
    until_ns = max((max(one.ended_ns, one.resumed_ns) for one in collectives), default=0)
    until_ns += draw(st.integers(1, 50))
    return Timeline(
        collectives=tuple(collectives), before_update_ns=until_ns, update_ns=7, deviation=0.0
    )


@deterministic
@given(timeline=timelines())
def test_steps_take_as_long_as_was_measured(timeline: Timeline) -> None:
    steps = steps_of(timeline)
    took_ns = run_iteration(step_tasks(steps, timeline.update_ns)).end_ns
    # What ends in another order than it was issued in ends later one after the other.
    latest_ns = max((one.ended_ns for one in timeline.collectives), default=0)
    assert took_ns <= max(latest_ns, timeline.before_update_ns) + timeline.update_ns
    assert took_ns >= timeline.before_update_ns + timeline.update_ns


@deterministic
@given(timeline=timelines())
def test_busy_periods_hold_every_collective_once(timeline: Timeline) -> None:
    periods = busy_periods(timeline.collectives)
    held = [one for period in periods for one in period.collectives]
    assert sorted(map(repr, held)) == sorted(map(repr, timeline.collectives))
    for before, after in pairwise(periods):
        assert before.end_ns < after.start_ns
    fit = fit_collectives(periods, 10**9, RANKS)
    for period in periods:
        times = shared_times(fit, period)
        assert sum(times) == period.end_ns - period.start_ns
        assert min(times) >= 0


def test_a_long_collective_spans_shorter_ones() -> None:
    rows = [(0, 100), (10, 50), (60, 90), (120, 130)]
    collectives = [
        Collective(
            operation="all_gather",
            size_bytes=1,
            issued_ns=issued_ns,
            waited_ns=-1,
            resumed_ns=-1,
            ended_ns=ended_ns,
        )
        for issued_ns, ended_ns in rows
    ]
    periods = busy_periods(collectives)
    assert [(period.start_ns, period.end_ns) for period in periods] == [(0, 100), (120, 130)]


def test_jitter_is_of_each_computation_so_that_all_have_the_deviation() -> None:
    alike = [Compute(10)] * 25
    assert jitter_of(0.02, alike) == pytest.approx(0.1)
    assert jitter_of(0.02, [Compute(10)]) == pytest.approx(0.02)
    assert jitter_of(0.9, alike) == 0.5
    assert jitter_of(0.9, []) == 0.0


def test_rings() -> None:
    assert ring_share("all_gather_into_tensor", 4) == 0.75
    assert ring_share("reduce_scatter_tensor", 4) == ring_share("all_reduce", 4) == 1.5
    assert ring_share("broadcast", 4) is None
    with pytest.raises(ValueError, match="more than 0"):
        fit_collectives([], 0, 4)
    with pytest.raises(ValueError, match="no iteration"):
        typical_timeline([])

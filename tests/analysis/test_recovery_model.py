"""Parts of a recovery: what was put into made-up logs of one setting is predicted in others."""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_analysis.compare.outages import (
    NOBODY,
    REQUESTED,
    STANDBY,
    OutageKind,
    OutageSample,
    outages,
)
from castor_analysis.compare.recovery_model import (
    OutageSetting,
    RecoveryModel,
    calibrate,
)
from castor_analysis.compare.recovery_points import (
    SHORT_S,
    MeasuredOutages,
    grouped_phases,
    recovery_points,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.membership import Lease, WatchLimits
from castor_records.events.event import Entry, Event
from castor_records.events.failures import (
    Detected,
    Failed,
    Planned,
    Replaced,
    Resumed,
    Retrieved,
    RunStarted,
)
from castor_records.events.line import parse_line
from castor_records.events.training import IterationEnded
from castor_records.phases import MEASURED
from castor_records.result import Result

MS = 1_000_000
RANKS = 4
REAL_LOG = Path(__file__).with_name("lease-recovery.events.jsonl")
"""Machine 2 is lost with a standby there, then rank 1 is killed."""

SMALL = OutageSetting(
    link_bps=2e8,
    storage_bps=1e8,
    ranks=RANKS,
    part_bytes=6_000_000,
    parameter_bytes=8_000_000,
    lease_s=5.0,
    iteration_s=1.5,
    serial_s=1.6,
)
RANK = OutageKind(failure="rank", source="own_memory")
MACHINE = OutageKind(failure="machine", source="peer", replacement=STANDBY)
ASKED = replace(MACHINE, replacement=REQUESTED)


@dataclass(frozen=True, slots=True)
class Blow:
    """One outage of a made-up run: milliseconds of each part."""

    kind: OutageKind
    parts: dict[str, int]
    load: int = 0
    again: bool = False
    """Another failure of the same kind strikes before training goes on."""


def made_up(blows: list[Blow], iterations: int = 3, step: int = 100) -> list[Entry[Event]]:
    """Return the log of a run of 4 machines in which these outages follow each other."""
    events: list[Entry[Event]] = []
    now = 0

    def add(kind: type[Event], **fields: Any) -> None:
        events.append(Entry(now * MS, kind.of_fields(fields)))

    add(RunStarted, machines=4, ranks=RANKS, replicas=2, placement="group")
    generation, done = 1, 0
    for blow in [None, *blows]:
        if blow is not None:
            parts = blow.parts
            victim = generation % 4
            now += 40
            lost = blow.kind.failure == "machine"
            attempts = 2 if blow.again else 1
            for attempt in range(attempts):
                add(
                    Failed, failure="hardware" if lost else "software",
                    target=f"{blow.kind.failure}:{victim}", machine=victim,
                )  # fmt: skip
                now += parts["detection"]
                generation += 1
                add(
                    Detected, generation=generation, machine=victim, cause="it failed",
                    failure="hardware" if lost else "software", how="lease" if lost else "exit",
                )  # fmt: skip
                now += 0 if attempt == attempts - 1 else 7
            now += parts["replacement"]
            if blow.kind.replacement != NOBODY:
                add(Replaced, generation=generation, machine=victim, agent="spare")
            now += parts["planning"]
            add(Planned, generation=generation, iteration=done, tier=blow.kind.source)
            now += parts["retrieval"]
            for rank in range(RANKS):
                own = blow.kind.source == "peer" and rank != victim
                source = "own_memory" if own else blow.kind.source.replace("peer", "peer:node-0")
                add(
                    Retrieved, generation=generation, machine=rank, rank=rank, own=True,
                    iteration=done, source=source, bytes=1, seconds=0.0,
                )  # fmt: skip
            now += parts["restart"]
        for rank in range(RANKS):
            load = blow.load / 1000 if blow is not None and rank == 1 else 0.0
            name = "storage" if blow is not None and blow.kind.source == "storage" else "restore"
            add(
                Resumed, generation=generation, rank=rank, iteration=done,
                wait=0.0, verify=0.0, **{name: load},
            )  # fmt: skip
        for index in range(iterations):
            now += blow.parts["first_iteration"] if blow is not None and index == 0 else step
            done += 1
            for rank in range(RANKS):
                add(
                    IterationEnded, generation=generation, rank=rank, iteration=done,
                    seconds=step / 1000,
                )  # fmt: skip
    return events


def milliseconds(low: int = 1, high: int = 9000) -> st.SearchStrategy[int]:
    return st.integers(low, high)


@st.composite
def truths(draw: st.DrawFn) -> dict[str, int]:
    """Draw the constants that every kind of outage has, in milliseconds."""
    names = ("detection", "replacement", "planning", "retrieval", "restart")
    return {name: draw(milliseconds()) for name in names}


@st.composite
def settings_of_runs(draw: st.DrawFn) -> OutageSetting:
    return OutageSetting(
        link_bps=draw(st.integers(10, 10_000)) * 1e6,
        storage_bps=draw(st.integers(10, 1000)) * 1e6,
        ranks=draw(st.integers(2, 64)),
        part_bytes=draw(st.integers(10_000, 10**9)),
        parameter_bytes=draw(st.integers(10_000, 10**9)),
        lease_s=draw(st.sampled_from([1.0, 2.0, 5.0, 30.0])),
        iteration_s=draw(st.integers(50, 60_000)) / 1000,
        serial_s=draw(st.integers(50, 60_000)) / 1000,
    )


KINDS = [
    RANK,
    MACHINE,
    ASKED,
    OutageKind(failure="machine", source="storage", replacement=STANDBY),
    OutageKind(failure="stop", source="own_memory"),
]


def happened(
    kind: OutageKind, truth: dict[str, int], setting: OutageSetting, extra_ms: int
) -> tuple[Blow, dict[str, float]]:
    """Return the outage that these constants make in a setting, written out once more here."""
    part_ms = setting.part_bytes * 8 / setting.link_bps * 1000
    tree_steps = 0
    while 1 << tree_steps < setting.ranks:
        tree_steps += 1
    sent = 2 * tree_steps + 1 - 1 / setting.ranks
    build_ms = 1.45 * sent * setting.parameter_bytes * 8 / setting.link_bps * 1000
    load_ms = setting.part_bytes / 50_000
    if kind.source == "storage":
        load_ms = 3 * setting.part_bytes * 8 / setting.storage_bps * 1000
    exact = dict.fromkeys(MEASURED, 0.0) | truth
    exact["retrieval"] += part_ms if kind.source == "peer" else 0.0
    exact["restart"] += build_ms + load_ms
    exact["first_iteration"] = setting.serial_s * 1000 + extra_ms
    if kind.replacement == NOBODY:
        exact["replacement"] = 0.0
    return Blow(kind, {k: round(v) for k, v in exact.items()}, round(load_ms)), exact


@settings(max_examples=3 * settings.default.max_examples // 5, deadline=None)
@given(
    st.sampled_from(KINDS), truths(), settings_of_runs(), settings_of_runs(), st.integers(0, 3000)
)
def test_constants_of_one_setting_give_the_parts_of_another(
    kind: OutageKind,
    truth: dict[str, int],
    here: OutageSetting,
    there: OutageSetting,
    extra_ms: int,
) -> None:
    blow, _ = happened(kind, truth, here, extra_ms)
    standbys = 1 if kind.replacement == STANDBY else 0
    (found,), left_out = outages(made_up([blow]), run="one", standbys=standbys)
    assert not left_out
    assert found.kind == kind
    predicted = calibrate([found], here).predict(kind, there)
    _, expected = happened(kind, truth, there, extra_ms)
    if kind.failure == "machine":
        expected["detection"] = (there.lease_s * 7 / 8 + 0.25) * 1000
    # Logs are in milliseconds: what is in proportion carries half of one along.
    slack = {
        "restart": 0.002 + 0.001 * there.load_unit(kind.source) / here.load_unit(kind.source),
    }
    for part in MEASURED:
        assert predicted[part] == pytest.approx(expected[part] / 1000, abs=slack.get(part, 0.001))
    assert predicted["total"] == pytest.approx(sum(predicted[part] for part in MEASURED))


def test_the_median_of_several_outages_is_fitted_and_in_its_own_setting_given_back() -> None:
    truth = {"detection": 200, "replacement": 0, "planning": 30, "retrieval": 40, "restart": 900}
    blows = []
    for extra in (0, 500, 40):
        blow, _ = happened(RANK, truth | {"restart": 900 + extra}, SMALL, 200)
        blows.append(blow)
    found, _ = outages(made_up(blows), run="one")
    predicted = calibrate(found, SMALL).predict(RANK, SMALL)
    assert predicted["restart"] == pytest.approx(
        statistics.median(o.seconds["restart"] for o in found)
    )
    assert predicted["first_iteration"] == pytest.approx(1.8)


@given(st.sampled_from([1.0, 2.0, 2.5, 5.0, 30.0]))
@settings(max_examples=5, deadline=None)
def test_detection_by_lease_is_what_renewals_and_expiries_at_random_come_to(lease_s: float) -> None:
    random_s = random.Random(3)
    drawn = []
    for _ in range(20_000):
        renewed_s = random_s.uniform(0, 1000)
        failed_s = renewed_s + random_s.uniform(0, lease_s / 4)
        look_s = random_s.uniform(0, 0.5)
        # etcd looks at look_s + k * 0.5; the first time at or after the lease's end counts.
        whole_s = {2.5: 3.0}.get(lease_s, lease_s)
        looks = -(-(renewed_s + whole_s - look_s) // 0.5)
        drawn.append(look_s + looks * 0.5 - failed_s)
    told = Lease(lease_s)
    assert told.low_s <= min(drawn)
    assert max(drawn) <= told.high_s
    assert statistics.mean(drawn) == pytest.approx(
        told.mean_s, abs=4 * told.deviation_s / 20_000**0.5
    )
    assert statistics.stdev(drawn) == pytest.approx(told.deviation_s, rel=0.03)


def test_machines_stand_by_once() -> None:
    parts = dict.fromkeys(MEASURED, 10)
    lost = [Blow(MACHINE, parts), Blow(RANK, parts | {"replacement": 0}), Blow(MACHINE, parts)]
    for standbys, kinds in [
        (0, [ASKED, RANK, ASKED]),
        (1, [MACHINE, RANK, ASKED]),
        (2, [MACHINE, RANK, MACHINE]),
    ]:
        found, _ = outages(made_up(lost), standbys=standbys)
        assert [one.kind for one in found] == kinds
        assert [one.by_lease for one in found] == [True, False, True]


def test_what_is_of_no_one_kind_is_left_out_with_its_reason() -> None:
    parts = dict.fromkeys(MEASURED, 20) | {"replacement": 0}
    found, left_out = outages(made_up([Blow(RANK, parts, again=True)]), run="twice")
    assert not found
    (one,) = left_out
    assert (one.run, one.generation) == ("twice", 3)
    assert "another failure" in one.why
    log = made_up([Blow(RANK, parts)])
    (one,) = outages([e for e in log if not isinstance(e.event, Failed)])[1]
    assert "nothing was injected" in one.why
    after = next(e.time_ns for e in log if isinstance(e.event, Detected))
    (one,) = outages([e for e in log if e.time_ns <= after])[1]
    assert "did not go on" in one.why
    (at,) = [i for i, e in enumerate(log) if isinstance(e.event, Failed)]
    both = Entry(log[at].time_ns, Failed(failure="hardware", target="machine:0", machine=0))
    (one,) = outages([*log[:at], both, *log[at:]])[1]
    assert "several kinds" in one.why


def test_a_real_log_has_both_kinds() -> None:
    events = [e for line in REAL_LOG.read_text().splitlines() if (e := parse_line(line))]
    found, left_out = outages(events, run="docs", standbys=1)
    assert not left_out
    assert [one.kind for one in found] == [MACHINE, RANK]
    assert [one.by_lease for one in found] == [True, False]
    lease = Lease(5.0)
    assert lease.low_s <= found[0].seconds["detection"] <= lease.high_s
    assert all(0 < one.load_s < one.seconds["restart"] for one in found)


def model_of(kinds: dict[OutageKind, dict[str, int]], setting: OutageSetting) -> RecoveryModel:
    found: list[OutageSample] = []
    for kind, truth in kinds.items():
        blow, _ = happened(kind, truth, setting, 120)
        standbys = 1 if kind.replacement == STANDBY else 0
        found += outages(made_up([blow]), run="calibrating", standbys=standbys)[0]
    return calibrate(found, setting)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.fixed_dictionaries(
        {
            name: st.sampled_from([0, 5, 20, 60, 900])
            for name in ("detection", "replacement", "planning", "retrieval", "restart")
        }
    ),
)
def test_every_part_is_in_one_point_and_the_total_holds_them_all(
    kind: OutageKind, truth: dict[str, int]
) -> None:
    model = model_of({kind: truth}, SMALL)
    there = replace(SMALL, link_bps=4e8)
    everywhere, here = grouped_phases(model, kind, there)
    parts = [part for group in (*everywhere.values(), *here.values()) for part in group]
    assert sorted(parts) == sorted(MEASURED)
    predicted = model.predict(kind, there)
    if "planning_etc" in everywhere:
        assert sum(predicted[part] for part in everywhere["planning_etc"]) >= SHORT_S
    blow, _ = happened(kind, truth, there, 120)
    standbys = 1 if kind.replacement == STANDBY else 0
    found, _ = outages(made_up([blow, blow]), run="checked", standbys=2 * standbys)
    shown = {"link": "400Mbps", "model": "small"}
    points, left_out = recovery_points(model, [MeasuredOutages(there, shown, found)])
    assert not left_out
    total = next(point for point in points if point.quantity == "recovery_total_s")
    rest = [point for point in points if point is not total]
    assert sum(point.simulated for point in rest) == pytest.approx(total.simulated)
    assert sum(point.measured for point in rest) == pytest.approx(total.measured)
    assert total.simulated == pytest.approx(predicted["total"])
    assert {point.samples for point in points} == {2}
    assert all(point.setting["failure"] == kind.failure for point in points)


def test_what_follows_from_neither_link_nor_model_is_pooled_over_settings() -> None:
    truth = {"detection": 4600, "replacement": 0, "planning": 9, "retrieval": 40, "restart": 900}
    model = model_of({MACHINE: truth, RANK: truth | {"detection": 200}}, SMALL)
    measured = []
    for link_bps in (1e8, 4e8):
        there = replace(SMALL, link_bps=link_bps)
        blows = [happened(kind, truth, there, 120)[0] for kind in (MACHINE, RANK)]
        found, _ = outages(made_up(blows), run=f"{link_bps}", standbys=1)
        measured.append(MeasuredOutages(there, {"link": link_bps}, found))
    points, _ = recovery_points(model, measured)
    (lease,) = [p for p in points if p.quantity == "recovery_detection_s"]
    assert (lease.samples, lease.simulated) == (2, 4.625)
    assert lease.setting["lease"] == "5 s"
    (planning,) = [p for p in points if p.quantity == "recovery_planning_etc_s"]
    assert planning.setting["phases"] == "detection+interrupted+replacement+planning+retrieval"
    # Planning alone is 9 ms for a machine: it counts with what is shortest there.
    retrievals = [p for p in points if p.quantity == "recovery_retrieval_s"]
    assert [p.setting["phases"] for p in retrievals] == [
        "retrieval+interrupted+replacement+planning"
    ] * 2
    totals = [p for p in points if p.quantity == "recovery_total_s"]
    assert len(totals) == 4


def test_a_kind_that_was_not_fitted_is_named_and_no_run_checks_itself() -> None:
    truth = dict.fromkeys(("detection", "replacement", "planning", "retrieval", "restart"), 90)
    model = model_of({RANK: truth}, SMALL)
    with pytest.raises(ValueError, match="nothing was fitted for machine from peer"):
        model.predict(MACHINE, SMALL)
    found, _ = outages(made_up([happened(MACHINE, truth, SMALL, 100)[0]]), run="x", standbys=1)
    points, left_out = recovery_points(model, [MeasuredOutages(SMALL, {}, found)])
    assert not points
    assert [(one.run, "machine from peer" in one.why) for one in left_out] == [("x", True)]
    own, _ = outages(made_up([happened(RANK, truth, SMALL, 100)[0]]), run="calibrating")
    with pytest.raises(ValueError, match="cannot check it"):
        recovery_points(model, [MeasuredOutages(SMALL, {}, own)])
    with pytest.raises(ValueError, match="no outage"):
        calibrate([], SMALL)


def test_a_setting_is_read_from_a_result() -> None:
    job = JobSpec(
        job="j",
        machines=2,
        ranks_per_machine=3,
        placement="group",
        replicas=((0, 1), (1, 0)),
        script="train.py",
        arguments=("--layers", "4"),
        limits=WatchLimits(lease_s=2.0),
    )
    spec = json.loads(job.to_json())
    cluster = {"name": "c", "bandwidth_bps": 10**8, "storage_bandwidth_bps": 10**7}
    result = Result(spec=spec, cluster=cluster)
    setting = OutageSetting.of_run(result, checkpoint_bytes=1200, iteration_s=0.5, serial_s=0.6)
    assert (setting.link_bps, setting.storage_bps, setting.ranks) == (1e8, 1e7, 6)
    assert (setting.part_bytes, setting.parameter_bytes) == (1200, 2400)
    halved = Result(spec={**spec, "arguments": ["--dtype=bf16"]}, cluster=cluster)
    half = OutageSetting.of_run(halved, checkpoint_bytes=1200, iteration_s=0.5, serial_s=0.6)
    assert half.parameter_bytes == 1200
    with pytest.raises(ValueError, match="emulated cluster"):
        OutageSetting.of_run(
            Result(spec=spec), checkpoint_bytes=1200, iteration_s=0.5, serial_s=0.6
        )
    with pytest.raises(ValueError, match="part_bytes is 0"):
        replace(SMALL, part_bytes=0)
    for name in ("iteration_s", "serial_s"):
        with pytest.raises(ValueError, match=name):
            replace(SMALL, **{name: 0.0})
    with pytest.raises(ValueError, match="storage"):
        replace(SMALL, storage_bps=0.0).load_unit("storage")

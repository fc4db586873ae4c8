"""A run's failures replayed: by hand, against a plain calculation, and from a made-up log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_analysis.compare.ettr_model import (
    MACHINE,
    MACHINE_ASKED,
    RANK,
    Blow,
    Replay,
    ettr_points,
    predict_ettr,
    read_replay,
)
from castor_analysis.compare.failure_runs import FailureModel, standbys_of
from castor_analysis.compare.measured_run import read_run
from castor_analysis.compare.recovery_model import (
    KindFigures,
    OutageSetting,
    RecoveryModel,
)
from castor_analysis.compare.settings import Setting, model_names
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import TrafficOptions
from castor_policy.membership import Lease, WatchLimits
from castor_records.events.event import Entry, Event
from castor_records.events.failures import (
    Detected,
    Failed,
    Planned,
    Resumed,
    Retrieved,
    RunStarted,
)
from castor_records.events.training import CheckpointCompleted, IterationEnded
from castor_records.recoveries import recoveries

S = 1_000_000_000
MS = 1_000_000
PAIRS = ((0, 1), (1, 0), (2, 3), (3, 2))

SETTING = OutageSetting(
    link_bps=1e8,
    ranks=4,
    part_bytes=2_500_000,  # 0.2 s
    parameter_bytes=1_000_000,
    lease_s=4.0,
    iteration_s=2.0,
    serial_s=2.0,
)


def figures(*, by_lease: bool = False, **seconds: float) -> KindFigures:
    known = dict.fromkeys(
        (
            "detection_s",
            "replacement_s",
            "planning_s",
            "retrieval_s",
            "restart_s",
            "load_s_per_unit",
        ),
        0.0,
    )
    return KindFigures(
        **{"outages": 1, "by_lease": by_lease, "first_iteration_s": 0.5, **known, **seconds}
    )


MODEL = RecoveryModel(
    SETTING,
    {
        RANK: figures(detection_s=0.1, planning_s=0.05, retrieval_s=0.05, restart_s=1.0),
        MACHINE: figures(by_lease=True, planning_s=0.01, retrieval_s=0.1, restart_s=1.5),
        MACHINE_ASKED: figures(
            by_lease=True, replacement_s=3.0, planning_s=0.01, retrieval_s=0.1, restart_s=1.5
        ),
    },
    ("elsewhere",),
)


def replay_of(blows: list[Blow], wall_s: float) -> Replay:
    return Replay(
        blows=tuple(sorted(blows, key=lambda blow: blow.time_ns)),
        wall_ns=round(wall_s * S),
        iterations=1,
        iteration_samples_s=(2.0,),
        lost_s=0.0,
    )


def predicted(blows: list[Blow], wall_s: float, checkpoint_s: float = 0.5, standbys: int = 0):
    return predict_ettr(
        replay_of(blows, wall_s),
        MODEL,
        SETTING,
        replicas=PAIRS,
        checkpoint_s=checkpoint_s,
        standbys=standbys,
        phases=1,
    )


def test_without_a_failure_all_time_is_useful() -> None:
    prediction = predicted([], 101)
    assert (prediction.ettr, prediction.iterations_lost) == (1.0, 0)
    assert prediction.tallies[0].iterations == 50


def test_a_trainer_that_dies_costs_its_recovery_and_what_was_not_checkpointed() -> None:
    # Iteration 5 ends at 10 s, its checkpoint is whole at 10.5 s.
    outage_s = MODEL.predict(RANK, SETTING)["total"] - SETTING.iteration_s
    for at_s, kept_s in [(10.499, 8.0), (10.501, 10.0), (11.999, 10.0)]:
        prediction = predicted([Blow(round(at_s * S), 3, False)], 60)
        assert prediction.iterations_lost == pytest.approx((at_s - kept_s) / 2)
        useful_s = kept_s + 60 - at_s - outage_s
        assert prediction.ettr * 60 == pytest.approx(useful_s, abs=1e-6)
    # The first iteration's excess is part of the outage, not of training.
    parts = MODEL.predict(RANK, SETTING)
    assert outage_s == pytest.approx(
        0.1 + 0.05 + 0.05 + parts["restart"] + 0.25 * SETTING.iteration_s
    )


def test_a_lost_machine_waits_for_its_lease_and_for_a_machine_if_none_stands_by() -> None:
    lease = Lease(SETTING.lease_s)
    blows = [Blow(31 * S, 2, True), Blow(90 * S, 2, True)]
    rest_s = MODEL.predict(MACHINE, SETTING)["total"] - SETTING.iteration_s - lease.mean_s
    detected_s = []
    for standbys, asked in [(2, 0), (1, 1), (0, 2)]:
        prediction = predicted(blows, 150, standbys=standbys)
        spent = prediction.tallies[0]
        assert lease.low_s * 2 <= spent.detection_ns / S <= lease.high_s * 2
        detected_s.append(spent.detection_ns / S)
        recovery_s = (
            spent.wall_ns - spent.useful_ns - spent.lost_progress_ns - spent.detection_ns
        ) / S
        assert recovery_s == pytest.approx(2 * rest_s + 3.0 * asked, abs=1e-6)
        assert (spent.recovered_peer, spent.hardware_failures) == (2, 2)
    assert len(set(detected_s)) == 1


def test_a_machine_that_its_neighbours_tell_of_waits_for_no_lease_while_a_standby_is_there() -> (
    None
):
    told = replace(MODEL.kinds[MACHINE], by_lease=False, detection_s=0.125)
    model = replace(MODEL, kinds={**MODEL.kinds, MACHINE: told})
    prediction = predict_ettr(
        replay_of([Blow(31 * S, 2, True), Blow(90 * S, 2, True)], 150),
        model,
        SETTING,
        replicas=PAIRS,
        checkpoint_s=0.5,
        standbys=1,
        phases=1,
    )
    lease = Lease(SETTING.lease_s)
    spent_s = prediction.tallies[0].detection_ns / S
    assert 0.125 + lease.low_s <= spent_s <= 0.125 + lease.high_s


def test_both_holders_of_a_shard_lost_means_the_start() -> None:
    prediction = predicted([Blow(31 * S, 2, True), Blow(31 * S, 3, True)], 60, standbys=2)
    assert prediction.tallies[0].recovered_scratch == 2
    assert prediction.iterations_lost == 15.5


@settings(max_examples=3 * settings.default.max_examples // 5, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 29_999), st.integers(0, 3), st.booleans()), max_size=12),
    st.integers(0, 2),
    st.integers(1, 2000),
)
def test_failures_apart_are_what_a_plain_calculation_gives(
    drawn: list[tuple[int, int, bool]], standbys: int, checkpoint_ms: int
) -> None:
    # One failure in each 30 s: every recovery is over, and every replica back, before the next.
    blows = [
        Blow((30_000 * (index + 1) + at_ms // 2) * MS, machine, hardware)
        for index, (at_ms, machine, hardware) in enumerate(drawn)
    ]
    wall_ns = (30 * len(blows) + 61) * S
    iteration_ns = 2 * S
    done, since_ns, lost_ns, used = 0, 0, 0, 0
    for blow in blows:
        elapsed_ns = blow.time_ns - since_ns
        whole = max(0, (elapsed_ns - checkpoint_ms * MS) // iteration_ns)
        lost_ns += elapsed_ns - whole * iteration_ns
        done += whole
        used += blow.hardware
        kind = RANK
        if blow.hardware:
            kind = MACHINE if used <= standbys else MACHINE_ASKED
        parts = MODEL.predict(kind, SETTING)
        outage_s = parts["total"] - SETTING.iteration_s
        if blow.hardware:
            # The renewal before, the look at or after the end of the lease.
            period_ns, look_ns = S + 3 * MS, S // 2
            expires_ns = blow.time_ns // period_ns * period_ns + 4 * S
            detected_ns = -(-expires_ns // look_ns) * look_ns
            outage_s += (detected_ns - blow.time_ns) / S - parts["detection"]
        since_ns = blow.time_ns + round(outage_s * S)
    useful_ns = done * iteration_ns + wall_ns - since_ns
    prediction = predict_ettr(
        replay_of(blows, wall_ns / S),
        MODEL,
        SETTING,
        replicas=PAIRS,
        checkpoint_s=checkpoint_ms / 1000,
        standbys=standbys,
        phases=1,
    )
    assert prediction.iterations_lost == pytest.approx(lost_ns / iteration_ns, abs=1e-6)
    assert prediction.ettr * wall_ns == pytest.approx(useful_ns, abs=20 * (len(blows) + 1))


def test_the_phase_of_the_iteration_in_which_a_failure_strikes_is_averaged_over() -> None:
    # Lost of an iteration of 2 s: what the failure cut off, and with a chance of a quarter the
    # iteration before it, whose checkpoint of 0.5 s was not whole.
    blows = [Blow(20 * S, 1, False)]
    prediction = predict_ettr(
        replay_of(blows, 60), MODEL, SETTING, replicas=PAIRS, checkpoint_s=0.5, phases=200
    )
    assert prediction.iterations_lost == pytest.approx(0.5 + 0.25, abs=0.02)
    outage_s = MODEL.predict(RANK, SETTING)["total"] - SETTING.iteration_s
    assert prediction.ettr == pytest.approx((60 - outage_s - 0.75 * 2) / 60, abs=0.001)


def run_log(target: str = "rank:1") -> list[Entry[Event]]:
    """Return a run of 20 iterations of 1 s; 6.4 s after the first ended, something fails."""
    events: list[Entry[Event]] = []

    def add(at_s: float, kind: type[Event], **fields: Any) -> None:
        events.append(Entry(round(at_s * S), kind.of_fields(fields)))

    def train(since_s: float, generation: int, first: int, last: int, excess_s: float) -> None:
        for iteration in range(first, last + 1):
            for rank in range(4):
                at_s = since_s + excess_s + iteration - first + 1
                add(
                    at_s, IterationEnded, generation=generation, rank=rank,
                    iteration=iteration, seconds=1.0 + (excess_s if iteration == first else 0.0),
                )  # fmt: skip
                add(
                    at_s + 0.3, CheckpointCompleted, generation=generation, rank=rank,
                    iteration=iteration, sent_bytes=2_500_000, sent_s=0.3,
                )  # fmt: skip

    machine = int(target.partition(":")[2])
    add(0, RunStarted, machines=4, ranks=4, replicas=2, placement="group")
    for rank in range(4):
        add(3, Resumed, generation=1, rank=rank, iteration=0)
    train(3, 1, 1, 7, 0.5)
    # Iteration 1 ended at 4.5, 7 at 10.5.
    add(10.9, Failed, failure="software", target=target, machine=machine)
    add(
        11,
        Detected,
        generation=2,
        failure="software",
        how="exit",
        machine=machine,
        cause="",
    )
    add(11.1, Planned, generation=2, iteration=6, tier="own_memory")
    for rank in range(4):
        add(11.2, Retrieved, generation=2, rank=rank, machine=rank, own=True, iteration=6,
            source="own_memory")  # fmt: skip
        add(14.9, Resumed, generation=2, rank=rank, iteration=6, verify=0.0, restore=0.1)
    train(14.9, 2, 7, 20, 0.2)
    return sorted(events, key=lambda event: event.time_ns)


def test_a_replay_counts_from_the_first_iterations_end() -> None:
    replay = read_replay(run_log())
    assert replay.blows == (Blow(6_400 * MS, 1, False),)
    # To 14.9 + 0.2 + 14 = 29.1 s.
    assert replay.wall_ns == 24_600 * MS
    assert replay.iterations == 19
    # 6 was loaded, which ended at 9.5.
    assert replay.lost_s == pytest.approx(1.4)
    # Neither the first of the run nor the first after the failure.
    assert replay.iteration_samples_s == (1.0,) * 19
    assert replay.ettr == pytest.approx(19 / 24.6)
    prediction = predict_ettr(
        replay, MODEL, replace(SETTING, iteration_s=1.0), replicas=PAIRS, checkpoint_s=0.5
    )
    ratio, lost = ettr_points(replay, prediction, {"link": "1"}, "run")
    assert (ratio.measured, ratio.simulated) == (replay.ettr, prediction.ettr)
    assert ratio.setting == {"link": "1", "failures": 1}
    assert lost.measured == pytest.approx(1.4)
    assert lost.simulated == prediction.iterations_lost


def test_failures_that_the_simulator_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="stop:1: the simulator knows"):
        read_replay(run_log("stop:1"))
    with pytest.raises(ValueError, match="two iterations"):
        read_replay(run_log()[:1])
    bare = RecoveryModel(SETTING, {MACHINE: MODEL.kinds[MACHINE]}, ())
    with pytest.raises(ValueError, match="nothing was fitted for rank"):
        predict_ettr(read_replay(run_log()), bare, SETTING, replicas=PAIRS, checkpoint_s=0.5)


def write_run(folder: Path, link_bps: int, command: list[str]) -> Path:
    """Write a run folder as `castor train` leaves it."""
    folder.mkdir()
    spec = JobSpec(
        job=folder.name,
        machines=4,
        ranks_per_machine=1,
        placement="group",
        replicas=PAIRS,
        script="/x/train.py",
        arguments=("--layers", "4", "--iterations", "20"),
        traffic=TrafficOptions(scheme="pipelined", mu=0.9, chunk_bytes=1 << 20),
        limits=WatchLimits(lease_s=4.0),
    )
    cluster = {"name": "c", "bandwidth_bps": link_bps, "storage_bandwidth_bps": 10**7}
    result = {
        "job": folder.name,
        "outcome": "finished",
        "command": command,
        "cluster": cluster,
        "spec": json.loads(spec.to_json()),
        "recoveries": [one.to_json() for one in recoveries(run_log())],
    }
    (folder / "run.json").write_text(json.dumps({"job": folder.name, "pid": 0}))
    (folder / "result.json").write_text(json.dumps(result))
    lines = [event.to_line() + "\n" for event in run_log()]
    (folder / "events.jsonl").write_text("".join(lines))
    return folder


def test_runs_of_one_setting_predict_the_others(tmp_path: Path) -> None:
    command = ["castor", "train", "--standby=2", "x.py"]
    first = read_run(write_run(tmp_path / "first", 10**8, command))
    other = read_run(write_run(tmp_path / "other", 2 * 10**8, command))
    replayed = read_run(write_run(tmp_path / "replayed", 10**8, [*command, "--replay", "t.csv"]))

    def predict(setting: Setting) -> dict[str, float]:
        return {"iteration_s": 1.0, "serial_s": 1.0, "checkpoint_complete_s": 0.5}

    names = model_names([first.setting])
    model = FailureModel.fitted([first], predict)
    points, left_out = model.recovery_points([other], names)
    assert not left_out
    found = {point.quantity: point for point in points}
    assert set(found) == {
        "recovery_planning_etc_s",
        "recovery_restart_s",
        "recovery_first_iteration_s",
        "recovery_total_s",
    }
    assert found["recovery_total_s"].setting["link"] == other.setting.link
    # The same log at twice the bandwidth: what travels is predicted to take half.
    restart = found["recovery_restart_s"]
    build_s = model.recovery.setting.build_s()
    assert restart.measured - restart.simulated == pytest.approx(build_s / 2)
    assert found["recovery_first_iteration_s"].error == pytest.approx(0.0)
    ratio, lost = model.replay_points(replayed, names)
    # The recovery was fitted on this very log; the phase of its one failure is chance.
    assert ratio.error == pytest.approx(0.0, abs=0.03)
    assert lost.simulated == pytest.approx(1.0, abs=0.05)
    with pytest.raises(ValueError, match="cannot check it"):
        model.replay_points(first, names)
    with pytest.raises(ValueError, match="one setting"):
        FailureModel.fitted([first, other], predict)


def test_standbys_are_read_from_the_command() -> None:
    assert standbys_of(["castor", "train", "--standby", "3", "x.py"]) == 3
    assert standbys_of(["castor", "train", "--standby=1"]) == 1
    assert standbys_of(["castor", "train"]) == 0
    assert standbys_of(()) == 0

"""Whole trainers: what is checkpointed comes back bit for bit, whatever fails."""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long  # all of it starts real processes, many times

MakeCluster = Callable[..., Any]
"""Of tests/runtime/conftest.py: machines, replicas and ranks a machine make a cluster."""


def without_start(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in ("start", "losses")} for r in results]


def test_tensors_survive_kill_9_of_all(make_cluster: MakeCluster) -> None:
    options = {"sizes": [1000, 5000, 7], "iterations": 12}
    whole = make_cluster(2, 2).run("tensors", options).results()
    cluster = make_cluster(2, 2)
    first = cluster.run("tensors", options | {"pause_s": 0.03})
    first.wait_completed(4)
    first.kill()
    second = cluster.run("tensors", options)
    again = second.results()
    assert [r["live"] for r in again] == [r["live"] for r in whole]
    assert all(4 <= r["start"] < 12 for r in again)
    assert set(second.tiers.values()) == {"own_memory"}


def test_one_of_every_so_many_iterations_is_taken_and_the_last(make_cluster: MakeCluster) -> None:
    options = {"sizes": [1000, 5000, 7], "iterations": 14}
    whole = make_cluster(2, 2).run("tensors", options, checkpoint_every=4).results()
    cluster = make_cluster(2, 2)
    first = cluster.run("tensors", options | {"pause_s": 0.03}, checkpoint_every=4)
    first.wait_completed(4)
    first.kill()
    cluster.lose_machine(1)
    second = cluster.run("tensors", options, checkpoint_every=4)
    again = second.results()
    (start,) = {result["start"] for result in again}
    assert start in (4, 8, 12)
    completed = [event["iteration"] for event in second.events(0, "checkpoint_completed")]
    assert completed == [one for one in (8, 12, 14) if one > start]
    assert cluster.arenas[0].replica(1).offered() == {12, 14}
    assert [r["live"] for r in again] == [r["live"] for r in whole]


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_deepspeed_resumes_bit_for_bit(
    make_cluster: MakeCluster, dtype: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"dtype": dtype, "iterations": 7}
    whole = make_cluster(2, 2).run("deepspeed", options).results()
    cluster = make_cluster(2, 2)
    # Watched by DeepSpeed's own monitor, too: that changes no bit.
    monitor = {"enabled": True, "output_path": str(tmp_path), "job_name": "job"}
    options["config"] = {"csv_monitor": monitor}
    first = cluster.run("deepspeed", options | {"pause_s": 0.05})
    first.wait_completed(3)
    first.kill()
    cluster.lose_machine(1)
    second = cluster.run("deepspeed", options)
    again = second.results()
    assert second.tiers[1] == "peer"
    assert all(3 <= r["start"] < 7 for r in again)
    assert without_start(again) == without_start(whole)
    done = again[0]["start"]
    assert [r["losses"] for r in again] == [r["losses"][done:] for r in whole]
    assert_scalars(tmp_path / "job", done)


def assert_scalars(folder: Path, resumed_from: int) -> None:
    """Hold what Castor has told the monitor against what happened."""
    told = {}
    for file in folder.glob("Train_Castor_*.csv"):
        _, *rows = csv.reader(file.read_text().splitlines())
        # Two lives write a head each; a sample is 2 ranks x 2 x 2 an iteration.
        found = [(int(float(at)) // 8, float(value)) for at, value in rows if at != "step"]
        told[file.stem.removeprefix("Train_Castor_")] = found
    assert set(told) == {
        "recoveries",
        "checkpoint_lag_iterations",
        "checkpoint_s",
        "checkpoint_stall_s",
    }
    second = [iteration for iteration, value in told["recoveries"] if value == 1.0]
    assert second == list(range(resumed_from + 1, 8))
    assert told["recoveries"][0] == (1, 0.0)
    assert all(lag in (0.0, 1.0) for _, lag in told["checkpoint_lag_iterations"])
    assert all(seconds > 0 for _, seconds in told["checkpoint_s"])
    assert all(0 <= seconds < 10 for _, seconds in told["checkpoint_stall_s"])


def test_an_engine_from_outside_is_held_as_those_of_castor_are(
    make_cluster: MakeCluster, recipe: Callable[[str, Path], Any], tmp_path: Path
) -> None:
    options = {"iterations": 12, "plugins": recipe("An engine", tmp_path).plugins}
    whole = make_cluster(2, 2).run("outside", options).results()
    cluster = make_cluster(2, 2)
    first = cluster.run("outside", options | {"pause_s": 0.03})
    first.wait_completed(4)
    first.kill()
    cluster.lose_machine(1)
    second = cluster.run("outside", options)
    again = second.results()
    assert second.tiers[1] == "peer"
    assert all(4 <= r["start"] < 12 for r in again)
    assert without_start(again) == without_start(whole)


@pytest.mark.parametrize("rows", [2000, 400_000])
def test_user_state_that_grows_is_given_room(make_cluster: MakeCluster, rows: int) -> None:
    """Step by step, ahead of need; and in one iteration beyond all that was there."""
    options = {"sizes": [3000], "iterations": 30 if rows == 2000 else 4, "rows": rows}
    cluster = make_cluster(2, 2)
    first = cluster.run("tensors", options)
    whole = first.results()
    assert len(whole[0]["rows"]) == rows * options["iterations"]
    capacity = cluster.arenas[0].replica(1).meta_bytes
    assert capacity >= len(cluster.arenas[0].replica(1).snapshot(options["iterations"]).meta)
    asked = [m for m in first.messages[0] if m["op"] == "room" and m["part"] == 1]
    assert 1 <= len(asked) <= 4
    cluster.lose_machine(1)
    second = cluster.run("tensors", options)
    again = second.results()
    assert second.tiers[1] == "peer"
    assert [r["rows"] for r in again] == [r["rows"] for r in whole]


def test_two_ranks_a_machine_and_a_lost_machine(make_cluster: MakeCluster) -> None:
    options = {"sizes": [3000, 9], "iterations": 10}
    whole = make_cluster(3, 2, 2).run("tensors", options).results()
    cluster = make_cluster(3, 2, 2)
    first = cluster.run("tensors", options | {"pause_s": 0.03})
    first.wait_completed(5)
    first.kill()
    cluster.lose_machine(2)
    second = cluster.run("tensors", options)
    assert [r["live"] for r in second.results()] == [r["live"] for r in whole]
    assert second.iteration >= 5
    assert second.tiers[2] == "peer"


def test_every_machine_holds_what_the_placement_says(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, 3)
    run = cluster.run("tensors", {"sizes": [5000], "iterations": 5})
    run.results()
    for machine in range(4):
        for rank in cluster.held_by(machine):
            replica = cluster.arenas[machine].replica(rank)
            assert replica.offered() == {4, 5}
            assert replica.verify(5) == []
            own = cluster.arenas[rank].replica(rank)
            assert replica.snapshot(5).data == own.snapshot(5).data
            assert replica.snapshot(5).meta == own.snapshot(5).meta
    control = cluster._controls[3].rank(0)
    assert (control.iteration, control.agreed) == (5, 5)


def test_what_is_captured_is_the_state_before_the_next_update(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2, 2)
    options = {"sizes": [1 << 20], "iterations": 5, "late_capture": True}
    cluster.run("tensors", options, chunk_bytes=1 << 18).results()
    value = torch.ones(())
    expected = []
    for iteration in range(5):
        value.mul_(1.0001).add_(iteration)
        expected.append(value.clone())
    for holder, iteration in itertools.product((0, 1), (4, 5)):
        data = cluster.arenas[holder].replica(0).snapshot(iteration).data
        found = torch.frombuffer(data, dtype=torch.float32)
        assert (found[: 1 << 20] == expected[iteration - 1]).all()


@pytest.mark.parametrize(
    ("moves", "moves_from", "hidden"),
    [("teacher", 0, False), ("teacher", 5, True), ("weight", 6, True)],
)
def test_no_complete_checkpoint_is_torn(
    make_cluster: MakeCluster, moves: str, moves_from: int, hidden: bool
) -> None:
    cluster = make_cluster(2, 2)
    options = {"iterations": 8, "moves": moves, "moves_from": moves_from, "hidden": hidden}
    run = cluster.run("teacher", options)
    run.results()
    expected = {}
    values = {"weight": 0.0, "teacher": 0.0}
    momentum = 0.0
    for iteration in range(8):
        if iteration >= moves_from:
            values[moves] = values[moves] * 0.5 + (values["weight"] + 1) * 0.5
        momentum = momentum * 0.5 + (-1.0 - iteration) if iteration else -1.0
        values["weight"] -= momentum
        expected[iteration + 1] = (values["weight"], values["teacher"])
    for holder, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        replica = cluster.arenas[holder].replica(rank)
        assert 8 in replica.offered()
        for iteration in replica.offered():
            part = torch.frombuffer(replica.snapshot(iteration).data, dtype=torch.float32)
            weight, teacher = part[:3000], part[3008:6008]
            assert (weight == expected[iteration][0]).all()
            assert (teacher == expected[iteration][1]).all()
    left_out = [event["iteration"] for event in run.events(0, "checkpoint_left_out")]
    assert left_out == ([] if moves_from == 0 else [moves_from])
    if left_out:
        assert f"{moves} changed between Checkpointer.step() and the next update" in run.logs()


def test_a_damaged_own_part_is_found_and_another_is_used(make_cluster: MakeCluster) -> None:
    options = {"sizes": [4000], "iterations": 6}
    cluster = make_cluster(2, 2)
    first = cluster.run("tensors", options)
    whole = first.results()
    # Both buffers are complete; the newest is damaged on machine 0, after the agents looked at it.
    cluster.arenas[0].replica(0).snapshot(6).data[4097] ^= 1
    second = cluster.run("tensors", options)
    again = second.results()
    assert [m["iteration"] for m in second.messages[0] if m["op"] == "corrupt"] == [6]
    assert [r["live"] for r in again] == [r["live"] for r in whole]


def test_nothing_is_overwritten_before_the_replicas_are_there_again(
    make_cluster: MakeCluster,
) -> None:
    options = {"sizes": [4000], "iterations": 3}
    cluster = make_cluster(2, 2)
    cluster.run("tensors", options).results()
    second = cluster.run("tensors", options | {"iterations": 6}, redundant=False)
    second.wait_until(lambda: bool(second.events(0, "iteration_ended")))
    time.sleep(0.3)
    assert not second.events(0, "checkpoint_completed")
    assert [h.iteration for h in cluster.arenas[0].replica(0).headers()].count(3) == 1
    second.say_redundant()
    second.results()
    assert cluster.arenas[0].replica(1).offered() == {5, 6}


def test_a_fault_on_one_rank_ends_the_others_with_an_error(make_cluster: MakeCluster) -> None:
    run = make_cluster(2, 2).run("uneven", {"iterations": 1000})
    assert run.wait_exit() == [1, 1]
    assert "ReplicationError: the checkpoint thread of rank 1 failed" in run.logs()


@pytest.mark.parametrize("scheme", ["blocking", "naive", "unpipelined", "pipelined"])
def test_every_scheme_completes_every_iteration(make_cluster: MakeCluster, scheme: str) -> None:
    cluster = make_cluster(3, 3)
    options = {"sizes": [9000, 3000], "iterations": 6}
    run = cluster.run("tensors", options, scheme=scheme, profile_iterations=2)
    run.results()
    completed = run.events(1, "checkpoint_completed")
    assert [event["iteration"] for event in completed] == [1, 2, 3, 4, 5, 6]
    assert [event["scheme"] for event in completed] == ["eager"] * 2 + [scheme] * 4
    assert all(cluster.arenas[m].replica(0).verify(6) == [] for m in cluster.rows[0])


@pytest.mark.long
def test_the_example_trains_on_four_machines(make_cluster: MakeCluster) -> None:
    script = Path(__file__).parents[2] / "examples" / "gpt2_tiny.py"
    cluster = make_cluster(4, 2)
    arguments = [str(script), "--iterations", "6"]
    run = cluster.run("script", {"arguments": arguments}, scheme="pipelined")
    run.results()
    ended = run.events(0, "iteration_ended")
    assert [event["iteration"] for event in ended] == [1, 2, 3, 4, 5, 6]
    assert ended[-1]["loss"] < ended[0]["loss"]
    spans = run.events(0, "checkpoint_completed")[-1]["spans_ns"]
    assert len(spans) > 3, "DeepSpeed's collectives must have been seen"

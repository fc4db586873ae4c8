"""Checkpoint traffic in training's idle spans: real ranks and collectives, one schedule for all.

On a busy machine idle spans drift by themselves, so a test may meet more schedules than the first.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from castor_lab.pacing import PACED_DEVICE
from castor_policy.chunk_schedule import Link, leave_short
from castor_policy.interleaving import SCHEMES
from castor_policy.job_options import DeviceOptions

pytestmark = pytest.mark.long  # all of it starts real processes

MakeCluster = Callable[..., Any]
"""Of tests/runtime/conftest.py: machines, replicas and ranks a machine make a cluster."""

LAYERS = 4
OPTIONS = {"size": 100_000, "gathered": 20_000, "layers": LAYERS, "pause_s": 0.01, "iterations": 6}


def profiled(run: Any, rank: int, iteration: int) -> dict[str, Any]:
    (found,) = (e for e in run.events(rank, "spans_profiled") if e["iteration"] == iteration)
    return dict(found)


def rescheduled(run: Any, rank: int, world: int, event: dict[str, Any]) -> dict[str, Any]:
    """Compute what `rank` schedules from nothing but the profiles of all and the link."""
    profiles = [profiled(run, r, event["iteration"])["spans_ns"] for r in range(world)]
    (link,) = run.events(rank, "link_measured")
    copies = event["copy_bandwidth_bps"]
    spans_ns = [sum(column) // world for column in zip(*profiles, strict=True)]
    schedule = SCHEMES[event["scheme"]](
        leave_short(spans_ns, event["shortest_span_ns"]),
        event["shard_bytes"],
        event["remote_copies"],
        Link(link["agreed_alpha_ns"], link["agreed_bandwidth_bps"]),
        event["buffer_bytes"],
        event["sub_buffers"],
        Fraction(repr(event["mu"])),
        Link(event["copy_alpha_ns"], copies) if copies else None,
    )
    rows = [(0, schedule.upfront), *enumerate(span.chunks for span in schedule.spans)]
    chunks = [(span, chunk) for span, row in rows for chunk in row]
    return {
        "spans_ns": spans_ns,
        "chunk_bytes": [chunk.size_bytes for _, chunk in chunks],
        "chunk_spans": [span for span, _ in chunks],
        "chunk_replicas": [chunk.replica for _, chunk in chunks],
        "spill_ns": schedule.spill_ns,
        "update_delay_ns": schedule.update_delay_ns,
        "alpha_ns": link["agreed_alpha_ns"],
        "bandwidth_bps": link["agreed_bandwidth_bps"],
    }


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_the_schedule_is_the_policys_on_the_recorded_numbers(
    make_cluster: MakeCluster, scheme: str
) -> None:
    settings: dict[str, Any] = {"scheme": scheme, "mu": 0.7}
    settings |= {"buffer_bytes": 50_001, "sub_buffers": 3}
    if scheme in ("pipelined", "unpipelined"):
        settings["device"] = DeviceOptions(maker=PACED_DEVICE, paced_copy_bps=4 * 10**8)
    if scheme == "pipelined":
        settings["send"] = "nccl"
    run = make_cluster(3, 3).run("collectives", OPTIONS | {"paced": True}, **settings)
    run.results()
    for rank in range(3):
        scheduled = run.events(rank, "scheduled")
        for event in scheduled:
            expected = rescheduled(run, rank, 3, event)
            assert {key: event[key] for key in expected} == expected
        event = scheduled[0]
        assert (event["iteration"], event["reason"], event["mu"]) == (3, "start", 0.7)
        assert sum(event["chunk_bytes"]) == 2 * event["shard_bytes"] == 800_000
        assert len(event["spans_ns"]) == LAYERS + 1
        assert bool(event["copy_bandwidth_bps"]) == ("send" in settings), "else no hop follows"
        completed = run.events(rank, "checkpoint_completed")
        assert [one["scheme"] for one in completed] == ["eager"] * 2 + [scheme] * 4
        assert all(one["captured_s"] > 0 and one["network_s"] > 0 for one in completed)
        assert all(one["sent_s"] + one["commit_s"] <= one["seconds"] + 1e-3 for one in completed)


def test_a_profile_shows_every_collective_with_its_end(make_cluster: MakeCluster) -> None:
    run = make_cluster(2, 2).run("collectives", OPTIONS, scheme="pipelined")
    run.results()
    profile = run.events(1, "spans_profiled")[0]
    assert profile["ops"] == ["all_gather_into_tensor"] * LAYERS
    assert profile["op_bytes"] == [2 * 4 * 20_000] * LAYERS, "what comes out is larger"
    assert profile["iterations"] == 2
    assert min(profile["spans_ns"]) >= 10_000_000, "as long as the program waits"
    for layer in range(LAYERS):
        issued, waited, resumed, ended = (
            profile[key][layer] for key in ("issued_ns", "waited_ns", "resumed_ns", "ended_ns")
        )
        assert issued <= waited <= resumed
        assert issued < ended <= resumed
        assert (waited == issued) == (layer % 2 == 0), "every other one blocks"
    assert profile["ended_ns"][-1] < profile["before_update_ns"] < profile["iteration_ns"]
    for event in run.events(1, "iteration_ended"):
        assert 0 < event["idle_s"] <= event["seconds"]
        assert 0 < event["train_busy_s"] < event["seconds"]


def test_no_chunk_leaves_before_its_span_has_begun(make_cluster: MakeCluster) -> None:
    # What fits a span is bounded by mu, so that the chunks spread over all of them.
    options = OPTIONS | {"pause_s": 0.03, "size": 2_000_000}
    settings = {"scheme": "pipelined", "mu": 0.1, "chunk_bytes": 1 << 18}
    run = make_cluster(2, 2).run("collectives", options, **settings)
    results = run.results()
    early = 0
    for rank, result in enumerate(results):
        schedules = run.events(rank, "scheduled")
        assert len(set(schedules[0]["chunk_spans"])) >= 2
        checkpoints: list[list[tuple[int, int]]] = []
        for number, posted_ns in result["posted"]:
            if number == 0:
                checkpoints.append([])
            checkpoints[-1].append((number, posted_ns))
        # The checkpoint of iteration i travels during iteration i + 1; the last one has none.
        travelled = list(zip(checkpoints, result["iterations"][1:], strict=False))
        for checkpoint, (rounds, iteration) in list(enumerate(travelled, start=1))[2:]:
            event = [one for one in schedules if one["iteration"] <= checkpoint][-1]
            assert len(rounds) == len(event["chunk_spans"])
            for number, posted_ns in rounds:
                span = event["chunk_spans"][number]
                # A span begins when the collective before it has ended. Of that moment the
                # program knows only that it lies after the collective's issue.
                issued_ns = [0, *iteration["issued"]][span]
                before_ns = iteration["before_update"]
                assert posted_ns > min(issued_ns, before_ns), (number, span)
                early += span > 0 and posted_ns < before_ns
    assert early > 0, "nothing was interleaved"


def test_a_drift_makes_one_new_schedule_on_all_ranks_at_once(make_cluster: MakeCluster) -> None:
    options = OPTIONS | {"pause_s": 0.06, "longer_s": 0.2, "longer_from": 8, "iterations": 14}
    run = make_cluster(3, 2).run("collectives", options, scheme="pipelined", profile_iterations=3)
    run.results()
    made = [
        [(event["iteration"], event["reason"]) for event in run.events(rank, "scheduled")]
        for rank in range(3)
    ]
    assert made[0] == made[1] == made[2]
    (at_start, _), (at_drift, reason) = made[0]
    assert (at_start, reason) == (4, "drift")
    assert 10 <= at_drift <= 13, "once half of the window has moved"
    assert run.events(2, "scheduled")[1]["spans_ns"][0] > 180_000_000
    assert [len(run.events(rank, "spans_profiled")) for rank in range(3)] == [2, 2, 2]


def test_without_checkpoints_training_is_the_same_and_is_profiled(
    make_cluster: MakeCluster,
) -> None:
    eager = make_cluster(2, 2).run("collectives", OPTIONS).results()
    cluster = make_cluster(2, 2)
    run = cluster.run("collectives", OPTIONS, scheme="none")
    assert [r["state"] for r in run.results()] == [r["state"] for r in eager]
    assert all(r["posted"] == [] for r in run.results())
    for rank in range(2):
        assert run.events(rank, "checkpoint_completed") == []
        assert run.events(rank, "scheduled") == []
        assert len(run.events(rank, "link_measured")) == 1
        profiles = run.events(rank, "spans_profiled")
        assert [(p["iteration"], p["iterations"]) for p in profiles] == [(3, 2), (6, 5)]
        own, other = cluster.arenas[rank].replica(rank), cluster.arenas[1 - rank].replica(rank)
        assert own.offered() == {6}, "agents read the final state from memory"
        assert own.verify(6) == []
        assert other.offered() == set()


def test_eager_traffic_is_neither_profiled_nor_measured(make_cluster: MakeCluster) -> None:
    run = make_cluster(2, 2).run("collectives", OPTIONS)
    run.results()
    for kind in ("spans_profiled", "link_measured", "scheduled"):
        assert run.events(0, kind) == []
    assert "idle_s" not in run.events(0, "iteration_ended")[0]

"""The iteration simulator against closed forms: overlap, chunks, jitter, conservation of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy import interleaving
from castor_policy.chunk_schedule import Link
from castor_policy.interleaving import SCHEMES
from castor_sim.iteration import run as run_module
from castor_sim.iteration.engine import run_iteration
from castor_sim.iteration.run import (
    SCHEME_NAMES,
    CheckpointTraffic,
    IterationCase,
    IterationReport,
    profile_spans,
    simulate_iteration,
)
from castor_sim.iteration.tasks import Kind, Lane, Task
from castor_sim.iteration.timeline import (
    COPY_LANE,
    START,
    IdleSpan,
    Interval,
    Traffic,
    average_spans,
    busy_ns,
)
from castor_sim.iteration.workload import (
    Block,
    Speeds,
    data_tasks,
    hybrid_tasks,
    zero3_tasks,
)

deterministic = settings(
    derandomize=True, deadline=None, max_examples=3 * settings.default.max_examples // 5
)

MS = 10**6
GBPS = 10**9
SENDING = SCHEME_NAMES[1:]


def by_turns(turns: Sequence[tuple[int, int]], update_ns: int = 0) -> tuple[Task, ...]:
    """Traffic and idle time by turns, as a measured profile has them."""
    tasks: list[Task] = []
    for busy, idle in turns:
        for kind, lane, duration in (
            (Kind.GATHER, Lane.NETWORK, busy),
            (Kind.COMPUTE, Lane.GPU, idle),
        ):
            if duration:
                after = (len(tasks) - 1,) if tasks else ()
                tasks.append(Task(str(kind), kind, lane, duration, after))
    return (
        *tasks,
        Task("update", Kind.UPDATE, Lane.GPU, update_ns, (len(tasks) - 1,) if tasks else ()),
    )


def traffic(**changes: object) -> CheckpointTraffic:
    figures: dict[str, object] = {
        "shard_bytes": 10 * 10**6,
        "remote_copies": 1,
        "link": Link(0, 8 * GBPS),  # a byte a nanosecond
        "copy_link": Link(0, 16 * GBPS),
        "buffer_bytes": 4 * 10**6,
        "sub_buffers": 4,
        "mu": Fraction(1),
        "free_bytes": 8 * 10**6,
        **changes,
    }
    return CheckpointTraffic(**figures)  # type: ignore[arg-type]  # a table of figures to vary


def case(tasks: tuple[Task, ...], of: CheckpointTraffic, **changes: object) -> IterationCase:
    figures = {"name": "case", "tasks": tasks, "machines": 1, "gpus": 2, "traffic": of, **changes}
    return IterationCase(**figures)  # type: ignore[arg-type]  # as above


def times(report: IterationReport) -> dict[str, int]:
    return {name: result.iteration_ns for name, result in report.results.items()}


def block(gather: int, flop: int, *, reduce: int | None = None, recomputed: bool = True) -> Block:
    return Block("layer", gather, gather if reduce is None else reduce, flop, recomputed)


def speeds(check_ns: int = 0, update_ns: int = 0) -> Speeds:
    return Speeds(
        flop_per_s=10**9,  # an operation a nanosecond
        collective=Link(0, 8 * GBPS),
        link=Link(0, 800 * GBPS),
        check_ns=check_ns,
        update_ns=update_ns,
    )


# The iteration without checkpoints


@deterministic
@given(
    gather=st.integers(1, 1000).map(lambda n: 128 * n),
    flop=st.integers(0, 200_000),
    layers=st.integers(1, 12),
    prefetch=st.integers(0, 14),
)
def test_an_iteration_lies_between_full_overlap_and_none(
    gather: int, flop: int, layers: int, prefetch: int
) -> None:
    tasks = zero3_tasks(
        [block(gather, flop)] * layers, speeds(5, 7), machines=16, gpus=8, prefetch=prefetch
    )
    end_ns = run_iteration(tasks).end_ns
    network_ns = sum(task.duration_ns for task in tasks if task.lane is Lane.NETWORK)
    gpu_ns = sum(task.duration_ns for task in tasks if task.lane is Lane.GPU)
    assert network_ns == 3 * layers * gather * 127 // 128
    assert gpu_ns == 4 * layers * flop + 12
    assert max(network_ns + 12, gpu_ns) <= end_ns <= network_ns + gpu_ns


@deterministic
@given(gather=st.integers(1, 100), flop=st.integers(1, 10_000), layers=st.integers(1, 6))
def test_without_prefetch_a_gather_is_never_hidden(gather: int, flop: int, layers: int) -> None:
    # Without gradients to reduce nothing overlaps: the sum of all.
    blocks = [block(128 * gather, flop, reduce=0)] * layers
    tasks = zero3_tasks(blocks, speeds(), machines=16, gpus=8, prefetch=0)
    assert run_iteration(tasks).end_ns == sum(task.duration_ns for task in tasks)


@deterministic
@given(a=st.integers(1, 1000), layers=st.integers(2, 20), tenths=st.integers(7, 10))
def test_traffic_bound_forward_and_computation_bound_backward(
    a: int, layers: int, tenths: int
) -> None:
    # What the calibration rests on. With f the forward pass of a layer and a its gather, and
    # 2a < 3f < 3a: the forward passes take L a, the backward passes, re-computation included,
    # 3 L f; the last layer's gather in front and the first gradients behind do not overlap.
    gather_ns = 127 * 10 * a
    f = 127 * tenths * a
    tasks = zero3_tasks(
        [block(128 * 10 * a, f)] * layers, speeds(), machines=16, gpus=8, prefetch=1
    )
    end_ns = run_iteration(tasks).end_ns
    closed = layers * gather_ns + 3 * layers * f
    # One forward pass and one reduction at the ends.
    assert closed <= end_ns <= closed + f + 2 * gather_ns


def test_plain_data_parallelism_leaves_the_forward_pass_idle() -> None:
    tasks = data_tasks([block(1280, 1000)] * 4, speeds(), machines=16, gpus=8, prefetch=1)
    spans = profile_spans(case(tasks, traffic()))[0]
    # Four forward passes, re-computation and backward pass of the last layer.
    assert (spans[0].after, spans[0].idle_ns) == (START, 4 * 1000 + 3000)
    all_reduced = [task.size_bytes for task in tasks if task.lane is Lane.NETWORK]
    assert all_reduced == [2 * 1280 * 127 // 128] * 4


def test_hybrid_parallelism_gathers_inside_the_machine() -> None:
    tasks = hybrid_tasks([block(1280, 1000)] * 4, speeds(), machines=16, gpus=8, prefetch=1)
    gathers = [task for task in tasks if task.kind is Kind.GATHER]
    assert {task.lane for task in gathers} == {Lane.LINK}
    across = [task.size_bytes for task in tasks if task.lane is Lane.NETWORK]
    assert across == [2 * 1280 * 15 // 16] * 4


def test_one_machine_has_no_network_traffic() -> None:
    tasks = zero3_tasks([block(1280, 1000)] * 2, speeds(), machines=1, gpus=8, prefetch=1)
    assert {task.lane for task in tasks} == {Lane.GPU, Lane.LINK}
    (span,) = profile_spans(case(tasks, traffic()))[0]
    assert span.idle_ns == run_iteration(tasks).end_ns


# Checkpoints in it

turn_lists = st.lists(
    st.tuples(st.integers(1, 20 * MS), st.integers(0, 20 * MS)), min_size=1, max_size=6
)


@deterministic
@given(
    turns=turn_lists,
    shard_bytes=st.integers(0, 30 * 10**6),
    remote_copies=st.integers(0, 3),
    sub_buffers=st.integers(3, 5),
    mu=st.sampled_from([Fraction(1, 2), Fraction(4, 5), Fraction(1)]),
    copy_gbps=st.integers(16, 64),
)
def test_the_schemes_meet_their_closed_forms(
    turns: list[tuple[int, int]],
    shard_bytes: int,
    remote_copies: int,
    sub_buffers: int,
    mu: Fraction,
    copy_gbps: int,
) -> None:
    of = traffic(
        shard_bytes=shard_bytes,
        remote_copies=remote_copies,
        sub_buffers=sub_buffers,
        mu=mu,
        copy_link=Link(0, copy_gbps * GBPS),
    )
    # Traffic in front that is long enough for the copy of the own replica.
    turns = [(40 * MS, 0), *turns]
    report = simulate_iteration(case(by_turns(turns, 1000), of))
    took, base_ns = times(report), times(report)["none"]
    sent_ns = remote_copies * shard_bytes  # a byte a nanosecond
    assert base_ns == sum(map(sum, turns)) + 1000
    # Blocking: the baseline and m - 1 transfers.
    assert took["blocking"] == base_ns + sent_ns
    # Pipelined, and the copy faster: only what exceeds the last span delays the update. The policy
    # does not charge the wait for a sub-buffer behind short chunks, where a span or replica ends.
    short = len(report.spans[0]) + remote_copies
    wait_ns = short * of.copy_link.transfer_ns(of.buffer_bytes // sub_buffers)
    pipelined_ns = took["pipelined"] - base_ns
    least_ns = delay_ns(report, "pipelined")
    assert least_ns <= pipelined_ns <= least_ns + wait_ns
    whole = shard_bytes % (of.buffer_bytes // sub_buffers) == 0
    if remote_copies == 1 and whole and len(turns) == 2:
        assert pipelined_ns == least_ns
    # Unpipelined: what the policy charges, but for the last chunk's copy, for which the update
    # does not wait.
    one_copy_ns = of.copy_link.transfer_ns(of.buffer_bytes)
    delayed_ns = took["unpipelined"] - base_ns
    predicted_ns = delay_ns(report, "unpipelined")
    assert predicted_ns - one_copy_ns <= delayed_ns <= predicted_ns
    # Without pipelining it never takes less than with it.
    assert delayed_ns >= least_ns - one_copy_ns

    for name in SENDING:
        result = report.results[name]
        assert took[name] >= base_ns
        assert result.checkpoint_ns == sent_ns
        check_bytes_and_lanes(result.intervals, of, gpus=2)
        if name != "naive":
            assert result.peak_buffer_bytes <= of.buffer_bytes
        assert result.out_of_memory == (result.peak_buffer_bytes > of.free_bytes)


def delay_ns(report: IterationReport, scheme: str) -> int:
    """What the policy predicts."""
    (schedule,) = report.results[scheme].schedules
    return schedule.update_delay_ns


def check_bytes_and_lanes(
    intervals: Sequence[Interval], of: CheckpointTraffic, *, gpus: int
) -> None:
    """Every byte is sent once and copied once, lanes do one thing at a time, the update is last."""
    moved = dict.fromkeys(Traffic, 0)
    for interval in intervals:
        if isinstance(interval.kind, Traffic):
            moved[interval.kind] += interval.size_bytes
    remote_bytes = gpus * of.remote_copies * of.shard_bytes
    assert moved == {
        Traffic.CHUNK: remote_bytes,
        Traffic.COPY: remote_bytes,
        Traffic.LOCAL_COPY: gpus * of.shard_bytes,
    }
    for lane in (Lane.NETWORK, COPY_LANE, Lane.GPU):
        own = sorted((i.start_ns, i.end_ns) for i in intervals if i.lane == lane)
        assert all(end <= start for (_, end), (start, _) in pairwise(own))
    update_ns = next(i.start_ns for i in intervals if i.kind == Kind.UPDATE)
    reads = (Traffic.CHUNK, Traffic.LOCAL_COPY)
    # Invariant 2: nothing of the state is read once the update writes it.
    assert all(i.end_ns <= update_ns for i in intervals if i.kind in reads)


def test_enough_idle_time_costs_nothing_at_all() -> None:
    report = simulate_iteration(
        case(by_turns([(10 * MS, 4 * MS)] * 5, 1000), traffic(mu=Fraction(4, 5)))
    )
    assert times(report)["pipelined"] == times(report)["none"] == 70 * MS + 1000
    assert report.overhead("pipelined") == 0.0
    assert report.results["pipelined"].idle_ns == report.baseline.idle_ns - 10 * MS


def test_the_unpipelined_bubble() -> None:
    # 10 MB in chunks of 4 MB: 10 ms on the network and 5 ms of copies, in one last span of 12 ms.
    # The update does not wait for the copy of the last chunk, 1 ms: 14 ms in all.
    report = simulate_iteration(case(by_turns([(50 * MS, 12 * MS)]), traffic()))
    took = times(report)
    assert took["unpipelined"] - took["none"] == 2 * MS
    assert took["pipelined"] == took["none"]


def test_naive_needs_as_much_memory_as_its_largest_span_carries() -> None:
    of = traffic(free_bytes=8 * 10**6 - 1)
    report = simulate_iteration(case(by_turns([(50 * MS, 8 * MS), (5 * MS, 4 * MS)]), of))
    naive = report.results["naive"]
    assert naive.peak_buffer_bytes == 8 * 10**6
    assert naive.out_of_memory
    assert not report.results["pipelined"].out_of_memory


def test_a_chunk_that_overruns_a_span_delays_what_comes_behind() -> None:
    # Storage traffic takes half of the card after the spans were profiled: training traffic takes
    # twice as long, and the chunks no longer fit.
    turned = by_turns([(10 * MS, 10 * MS), (10 * MS, 0)])
    report = simulate_iteration(
        case(turned, traffic(), network_share=Fraction(1, 2)), ["pipelined"]
    )
    assert times(report) == {"none": 50 * MS, "pipelined": 60 * MS}


# Jitter


def test_jitter_is_seeded_and_a_margin_absorbs_it() -> None:
    turned = by_turns([(10 * MS, 4 * MS)] * 12)
    careful, bold = (traffic(shard_bytes=30 * 10**6, mu=Fraction(mu)) for mu in ("0.7", "1"))
    figures = {"jitter": 0.1, "profiled": 10, "measured": 4}
    report = simulate_iteration(case(turned, careful, **figures), ["pipelined"])
    assert (
        report.results
        == simulate_iteration(case(turned, careful, **figures), ["pipelined"]).results
    )
    other = simulate_iteration(case(turned, careful, seed=2, **figures), ["pipelined"])
    assert other.baseline.iterations_ns != report.baseline.iterations_ns
    assert len(set(report.baseline.iterations_ns)) == 4
    # 30 % of each span is spare, and no span is more than 17.3 % shorter than its mean.
    assert report.overhead("pipelined") < 0.002
    risky = simulate_iteration(case(turned, bold, **figures), ["pipelined"])
    assert risky.overhead("pipelined") > report.overhead("pipelined")


def test_profiled_spans_are_means_over_iterations() -> None:
    turned = by_turns([(10 * MS, 4 * MS)] * 3)
    jittered = case(turned, traffic(), jitter=0.1, profiled=200)
    spans = profile_spans(jittered)[0]
    assert [span.after for span in spans] == [0, 2, 4]
    for span in spans:
        # Standard error: 0.1 x 4 ms over the root of 200; five of them.
        assert span.idle_ns == pytest.approx(4 * MS, abs=5 * 0.1 * 4 * MS / 200**0.5)


# What is shared with the runtime, and what is refused


def test_the_schedules_are_the_policys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_module.SCHEMES.built_in is interleaving.SCHEMES
    assert SCHEMES["pipelined"] is interleaving.schedule_pipelined
    asked = []

    def spy(*arguments: object) -> interleaving.Schedule:
        asked.append(arguments)
        return interleaving.schedule_pipelined(*arguments)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(run_module, "SCHEMES", {**SCHEMES, "pipelined": spy})
    simulate_iteration(case(by_turns([(MS, MS)]), traffic()), ["pipelined"])
    assert [arguments[0] for arguments in asked] == [[MS]]


def test_short_spans_are_left_alone() -> None:
    of = traffic(shortest_span_ns=3 * MS)
    spans = profile_spans(case(by_turns([(MS, 2 * MS), (MS, 3 * MS), (MS, 0)]), of))[0]
    assert [span.idle_ns for span in spans] == [3 * MS, 0]


def test_what_is_refused() -> None:
    good = case(by_turns([(MS, MS)]), traffic())
    with pytest.raises(ValueError, match="no scheme 'fast'"):
        simulate_iteration(good, ["fast"])
    with pytest.raises(ValueError, match="jitter"):
        replace(good, jitter=0.6)
    with pytest.raises(ValueError, match="network_share"):
        replace(good, network_share=Fraction(0))
    with pytest.raises(ValueError, match="at least one task"):
        replace(good, tasks=())
    late = (Task("a", Kind.GATHER, Lane.NETWORK, 1, (0,)),)
    with pytest.raises(ValueError, match="does not come before"):
        replace(good, tasks=late)
    with pytest.raises(ValueError, match="prefetch"):
        zero3_tasks([block(1, 1)], speeds(), machines=2, gpus=1, prefetch=-1)


def test_busy_time_counts_one_lane_of_one_machine() -> None:
    run = run_iteration(by_turns([(3, 4), (5, 6)]))
    assert busy_ns(run.intervals, 0, Lane.NETWORK) == 8
    assert busy_ns(run.intervals, 1, Lane.NETWORK) == 0


def test_a_span_that_vanishes_in_an_iteration_counts_as_nothing_there() -> None:
    runs = [
        [IdleSpan(3, 10, 8), IdleSpan(5, 30, 4), IdleSpan(9, 50, 2)],
        [IdleSpan(5, 20, 6), IdleSpan(9, 40, 4)],
    ]
    assert average_spans(runs, 0) == (IdleSpan(3, 10, 4), IdleSpan(5, 25, 5), IdleSpan(9, 45, 3))
    # Short ones are left out, but not the last.
    assert average_spans(runs, 5) == (IdleSpan(5, 25, 5), IdleSpan(9, 45, 3))
    with pytest.raises(ValueError, match="at least one iteration"):
        average_spans([], 0)


def test_the_own_replica_is_copied_beside_training_traffic() -> None:
    # Starts idle: the copy waits for traffic and for the copy of the last chunk before it, 0.5 ms;
    # then it goes on part by part, 0.5 ms each.
    turned = by_turns([(0, 6 * MS), (3 * MS, 9 * MS), (3 * MS, 20 * MS)])
    report = simulate_iteration(case(turned, traffic()), ["pipelined"])
    intervals = report.results["pipelined"].intervals
    busy = [(i.start_ns, i.end_ns) for i in intervals if i.kind == Kind.GATHER]
    sent_ns = max(i.end_ns for i in intervals if i.kind == Traffic.CHUNK)
    copies = [i for i in intervals if i.kind == Traffic.LOCAL_COPY]
    assert len(copies) == 10
    assert copies[0].start_ns == 6 * MS + MS // 2
    for copy in copies:
        beside = any(start <= copy.start_ns < end for start, end in busy)
        assert beside or copy.start_ns >= sent_ns

"""Idle spans of collectives that a GPU does while the host runs ahead: on a fake one, by its time.

The host's clock is the fake's too, so that spans and gates are compared with what really was.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from castor_lab.fake_cuda import FakeCuda, FakeNccl
from castor_runtime.trainer.cuda_clock import CudaClock
from castor_runtime.trainer.idle_spans import Gate, IdleSpans
from castor_runtime.trainer.joining import choose_spans
from castor_runtime.trainer.span_profile import SpanProfile
from castor_runtime.trainer.stream_spans import StreamSpans, covered_ns

MS = 1_000_000
LAYERS = 10
NETWORK_NS = 30 * MS
COMPUTE_NS = 5 * MS
HOST_NS = 1 * MS
NEAR = 0.03


class Training:
    """A rank whose layers are gathered, computed, and updated; the host is ahead of it."""

    def __init__(self, cuda: FakeCuda, way: str) -> None:
        self.cuda = cuda
        self.nccl = FakeNccl(cuda, NETWORK_NS)
        self.gate = Gate()
        clock = CudaClock(cuda.device, lambda: cuda.now_ns)
        self.spans = StreamSpans(self.gate, clock, lambda: cuda.now_ns)
        self.spans.install(self.nccl)
        self.side = cuda.new_stream("the stream of gathers")
        self.way = way
        self.piece = cuda.empty(512)
        self.begin_ns = 0
        self.update_ns = 0
        self.end_ns = 0

    def gather(self) -> None:
        stream = self.side if self.way == "aside" else self.cuda.current_stream()
        with self.cuda.stream(stream):
            if self.way == "blocking":
                self.nccl.all_gather_into_tensor(self.piece, self.piece)
                return
            work = self.nccl.all_gather_into_tensor(self.piece, self.piece, async_op=True)
            self.cuda.host_works(HOST_NS)
            assert work is not None
            work.wait()
        self.cuda.current_stream().wait_stream(stream)

    def iterate(self) -> object:
        """Queue an iteration and end it, without waiting; return what is told of the one before."""
        self.nccl.busy_ns.clear()
        self.begin_ns = max(self.cuda.now_ns, self.cuda.default.free_ns)
        self.gate.close()
        for _ in range(LAYERS):
            self.gather()
            self.cuda.launch("a layer", writes=[self.piece], takes_ns=COMPUTE_NS)
            self.side.wait_stream(self.cuda.default)
        self.update_ns = self.cuda.default.free_ns
        self.spans.before_update()
        self.cuda.launch("the update", writes=[self.piece], takes_ns=7 * MS)
        self.end_ns = self.cuda.default.free_ns
        self.side.wait_stream(self.cuda.default)
        return self.spans.end_iteration()

    def real_spans_ns(self) -> list[int]:
        edges = [self.begin_ns, *itertools.chain(*self.nccl.busy_ns), self.update_ns]
        return [end - begin for begin, end in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("way", ["blocking", "asynchronous", "aside"])
def test_spans_are_those_of_the_gpu(cuda: FakeCuda, way: str) -> None:
    training = Training(cuda, way)
    assert training.spans.end_iteration() is None
    assert training.iterate() is None
    for _ in range(3):
        real, busy = training.real_spans_ns(), len(training.nccl.busy_ns) * NETWORK_NS
        whole = training.end_ns - training.begin_ns
        timeline, use = training.iterate()  # type: ignore[misc]  # it is the second, and tells
        assert timeline.spans_ns == pytest.approx(real, rel=NEAR, abs=MS / 100)
        assert use.train_busy_ns == pytest.approx(busy, rel=NEAR)
        assert use.idle_ns == pytest.approx(whole - busy, rel=NEAR)
        assert timeline.iteration_ns == pytest.approx(whole, rel=NEAR)
        assert timeline.update_ns == pytest.approx(7 * MS, rel=NEAR)
    assert sum(real) > 49 * MS
    assert [str(fault) for fault in cuda.faults] == []


def test_the_hosts_own_view_of_them_is_wrong(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castor_runtime.trainer.idle_spans.time.monotonic_ns", lambda: cuda.now_ns)
    training = Training(cuda, "asynchronous")
    training.spans.remove()
    seen = IdleSpans(Gate())
    seen.install(training.nccl)
    seen.end_iteration()
    training.iterate()
    _, use = seen.end_iteration()
    assert use.train_busy_ns < LAYERS * NETWORK_NS / 10


def states(training: Training, until_ns: int) -> Iterator[tuple[int, bool]]:
    """Let the host's time go on; give how many collectives are over, and whether one is not."""
    while training.cuda.now_ns < until_ns:
        now_ns = training.cuda.now_ns
        over = sum(end <= now_ns for _, end in training.nccl.busy_ns)
        yield over, any(begin <= now_ns < end for begin, end in training.nccl.busy_ns)
        training.cuda.host_works(MS)


@pytest.mark.parametrize("way", ["blocking", "asynchronous", "aside"])
def test_the_gate_follows_the_gpu_and_not_the_host(cuda: FakeCuda, way: str) -> None:
    training = Training(cuda, way)
    training.spans.end_iteration()
    for _ in range(LAYERS):
        training.gather()
        cuda.launch("a layer", writes=[training.piece], takes_ns=COMPUTE_NS)
        training.side.wait_stream(cuda.default)
    training.spans.before_update()
    training.spans.open_gate()
    update_ns = cuda.default.free_ns
    waits = dict(cuda.host_waits_by)
    reached, pauses = 0, set()
    for over, busy in states(training, update_ns):
        if not busy:
            reached = over  # what overlaps is let go at the next pause
            pauses.add(over)
        begun = max(span for span in range(LAYERS + 2) if training.gate.has_begun(span))
        assert (begun, training.gate.in_traffic) == (reached, busy)
        assert not training.gate.is_open
    assert pauses >= set(range(1, LAYERS + 1))
    cuda.host_works(MS)
    assert training.gate.has_begun(LAYERS + 1)
    assert training.gate.is_open
    assert cuda.host_waits_by == waits, "it is asked, and never waited for"


def test_what_watches_is_chosen_by_where_the_state_is(cuda: FakeCuda) -> None:
    assert isinstance(choose_spans(cuda.device, Gate()), StreamSpans)
    assert isinstance(choose_spans(torch.device("cpu"), Gate()), IdleSpans)


def test_who_waits_at_the_gate_asks_again(cuda: FakeCuda) -> None:
    gate, asked = Gate(), []

    def look() -> None:
        asked.append(len(asked))
        if len(asked) == 5:
            gate.release(2)

    gate.look_with(look)
    gate.wait(2)
    assert len(asked) == 5


def test_a_gate_that_was_open_for_one_checkpoint_is_closed_for_the_next(cuda: FakeCuda) -> None:
    training = Training(cuda, "blocking")
    training.spans.end_iteration()
    training.spans.open_gate()
    cuda.host_works(MS)
    assert training.gate.has_begun(3)
    training.spans.close_gate()
    assert not training.gate.has_begun(3)


def test_a_wait_for_a_checkpoint_is_no_part_of_the_timeline(cuda: FakeCuda) -> None:
    training = Training(cuda, "blocking")
    spans = training.spans
    spans.end_iteration()
    cuda.host_works(40 * MS)
    spans.waited(40 * MS)  # for the checkpoint of the iteration before: this one begins now
    cuda.launch("a layer", takes_ns=10 * MS)
    spans.before_update()
    cuda.host_works(25 * MS)  # 15 of them the GPU has nothing to do
    spans.waited(25 * MS)
    cuda.launch("the update", takes_ns=7 * MS)
    spans.end_iteration()
    timeline, use = spans.end_iteration() or pytest.fail("it is the second")
    assert timeline.spans_ns == pytest.approx((10 * MS,), rel=NEAR)
    assert timeline.update_ns == pytest.approx(7 * MS, rel=NEAR)
    assert timeline.iteration_ns == pytest.approx(32 * MS, rel=NEAR)
    assert use.idle_ns == pytest.approx(72 * MS, rel=NEAR)


def test_training_is_blocked_once_the_gpu_has_nothing_to_do(cuda: FakeCuda) -> None:
    spans = Training(cuda, "blocking").spans
    spans.end_iteration()
    cuda.launch("a layer", takes_ns=10 * MS)
    spans.open_gate()
    assert spans.stands_since_s() == cuda.now_ns / 1e9, "it is busy"
    cuda.host_works(25 * MS)
    stands_ns = cuda.now_ns - spans.stands_since_s() * 1e9
    assert stands_ns == pytest.approx(15 * MS, rel=NEAR)


def test_traffic_of_checkpoints_is_told_from_idle_time(cuda: FakeCuda) -> None:
    training = Training(cuda, "blocking")
    spans = training.spans
    spans.end_iteration()
    training.gather()
    cuda.host_works(20 * MS)
    spans.transfer_began()
    spans.transfer_began()
    cuda.host_works(20 * MS)  # 10 of them beside the gather
    spans.transfer_ended()
    spans.transfer_ended()
    cuda.launch("a layer", takes_ns=10 * MS)
    spans.end_iteration()
    _, use = spans.end_iteration() or pytest.fail("it is the second")
    assert use.train_busy_ns == pytest.approx(30 * MS, rel=NEAR)
    assert use.idle_ns == pytest.approx(10 * MS, rel=NEAR)


def test_streams_that_wait_for_nobody_make_no_time_negative(cuda: FakeCuda) -> None:
    training = Training(cuda, "blocking")
    spans, late = training.spans, cuda.new_stream("a stream of the user's")
    cuda.launch("a layer", takes_ns=20 * MS)
    spans.end_iteration()
    with cuda.stream(late):  # ahead of the default one, and then behind it
        training.nccl.all_gather_into_tensor(training.piece, training.piece)
        cuda.launch("a layer", takes_ns=90 * MS)
        training.nccl.all_gather_into_tensor(training.piece, training.piece)
        spans.before_update()
    spans.waited(MS)
    spans.end_iteration()
    timeline, use = spans.end_iteration() or pytest.fail("it is the second")
    SpanProfile(timeline, 1, 0.0).to_event(generation=0, rank=0, iteration=1).check()
    times = [timeline.before_update_ns, timeline.update_ns, use.idle_ns, use.train_busy_ns]
    times += [time for one in timeline.collectives for time in (one.issued_ns, one.ended_ns)]
    assert min(times) >= 0
    assert timeline.before_update_ns + timeline.update_ns <= timeline.iteration_ns


def test_what_is_never_waited_for_lasts_until_the_end(cuda: FakeCuda) -> None:
    training = Training(cuda, "asynchronous")
    spans = training.spans
    spans.end_iteration()
    training.nccl.all_gather_into_tensor(training.piece, training.piece, async_op=True)
    cuda.launch("a layer", takes_ns=10 * MS)
    assert not training.gate.has_begun(1)
    spans.end_iteration()
    timeline, _ = spans.end_iteration() or pytest.fail("it is the second")
    (only,) = timeline.collectives
    assert (only.waited_ns, only.resumed_ns) == (-1, -1)
    assert only.ended_ns == timeline.iteration_ns


def test_a_collective_of_the_processor_is_the_hosts(cuda: FakeCuda) -> None:
    class Gloo:
        def all_reduce(self, _given: torch.Tensor) -> None:
            cuda.host_works(3 * MS)

    training = Training(cuda, "blocking")
    backend = Gloo()
    training.spans.install(backend)
    training.spans.end_iteration()
    cuda.host_works(2 * MS)
    backend.all_reduce(torch.zeros(1))
    training.spans.end_iteration()
    timeline, _ = training.spans.end_iteration() or pytest.fail("it is the second")
    (only,) = timeline.collectives
    assert only.ended_ns - only.issued_ns == 3 * MS
    assert only.issued_ns == pytest.approx(2 * MS, rel=NEAR)


def test_times_stay_exact_over_days(cuda: FakeCuda) -> None:
    clock = CudaClock(cuda.device, lambda: cuda.now_ns)
    for _ in range(200):
        cuda.host_works(1_000_000 * MS)  # single precision tells hours apart by a millisecond
        mark = clock.mark()
        assert mark.passed()
        clock.follow(mark)
    cuda.host_works(5 * MS)
    assert clock.mark().ns() == pytest.approx(cuda.now_ns, abs=10 * MS)
    before, after = clock.mark(), (cuda.host_works(MS), clock.mark())[1]
    assert after.ns() - before.ns() == pytest.approx(MS, abs=1000)


def test_the_length_of_a_union() -> None:
    assert covered_ns([], (0, 10)) == 0
    assert covered_ns([(1, 3), (2, 5), (8, 20)], (0, 10)) == 6
    assert covered_ns([(-5, 1), (0, 10), (3, 4)], (0, 10)) == 10

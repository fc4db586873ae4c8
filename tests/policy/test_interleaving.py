"""Schedules of checkpoint traffic: whole, in order, within bounds; the paper's three slips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from castor_policy.chunk_schedule import (
    CHUNKS_MAX,
    Chunk,
    Link,
    Schedule,
    check_complete,
    leave_short,
)
from castor_policy.interleaving import SCHEMES, schedule_pipelined

deterministic = settings(
    derandomize=True, deadline=None, max_examples=3 * settings.default.max_examples
)

GB = 10**9
MB = 10**6
MS = 10**6  # nanoseconds

links = st.builds(
    Link,
    alpha_ns=st.integers(0, 60),
    bandwidth_bps=st.one_of(
        st.integers(8 * 10**8, 8 * 10**10),  # 0.1 to 10 bytes a nanosecond
        st.integers(1, 10**6),
    ),
)


@dataclass(frozen=True)
class Case:
    spans_ns: tuple[int, ...]
    checkpoint_bytes: int
    remote_copies: int
    link: Link
    buffer_bytes: int
    sub_buffers: int
    mu: Fraction
    copy_link: Link | None

    def schedule(self, scheme: str) -> Schedule:
        return SCHEMES[scheme](
            self.spans_ns,
            self.checkpoint_bytes,
            self.remote_copies,
            self.link,
            self.buffer_bytes,
            self.sub_buffers,
            self.mu,
            self.copy_link,
        )

    def charge_ns(self, scheme: str, size_bytes: int) -> int:
        """What a chunk costs, told apart from the code under test."""
        network_ns = self.link.transfer_ns(size_bytes)
        copy_ns = (self.copy_link or self.link).transfer_ns(size_bytes)
        if scheme == "naive":
            return network_ns
        if scheme == "unpipelined" or self.sub_buffers == 1:
            return network_ns + copy_ns
        return max(network_ns, copy_ns)

    def largest_chunk_bytes(self, scheme: str) -> int:
        return {"naive": self.checkpoint_bytes, "unpipelined": self.buffer_bytes}.get(
            scheme, self.buffer_bytes // self.sub_buffers
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sub_buffers = draw(st.integers(1, 5))
    return Case(
        spans_ns=tuple(draw(st.lists(st.integers(0, 400), max_size=7))),
        checkpoint_bytes=draw(st.integers(0, 700)),
        remote_copies=draw(st.integers(0, 3)),
        link=draw(links),
        buffer_bytes=draw(st.integers(sub_buffers, 300)),
        sub_buffers=sub_buffers,
        mu=draw(st.sampled_from([Fraction(1), Fraction(4, 5), Fraction(1, 3), Fraction(1, 97)])),
        copy_link=draw(st.one_of(st.none(), links)),
    )


schemes = pytest.mark.parametrize("scheme", sorted(SCHEMES))


def schedules(case: Case, names: Iterable[str] = SCHEMES) -> Iterator[Schedule]:
    """The case's schedule under each scheme: to draw a case takes longer than to test it."""
    for scheme in names:
        note(scheme)
        yield case.schedule(scheme)


@given(links, st.integers(0, 10**13))
@deterministic
def test_a_transfer_takes_alpha_and_the_bytes_rounded_up(link: Link, size_bytes: int) -> None:
    exact = link.alpha_ns + Fraction(size_bytes * 8 * 10**9, link.bandwidth_bps)
    assert exact <= link.transfer_ns(size_bytes) < exact + 1


@given(case=cases())
@deterministic
def test_every_byte_of_every_replica_travels_once_and_in_order(case: Case) -> None:
    for schedule in schedules(case):
        chunks = schedule.chunks
        assert [chunk.replica for chunk in chunks] == sorted(chunk.replica for chunk in chunks)
        sent = dict.fromkeys(range(case.remote_copies), 0)
        for chunk in chunks:
            assert chunk.size_bytes > 0
            sent[chunk.replica] += chunk.size_bytes
        assert sent == dict.fromkeys(range(case.remote_copies), case.checkpoint_bytes)


@given(case=cases())
@deterministic
def test_no_chunk_and_no_finite_span_is_overfilled(case: Case) -> None:
    for schedule in schedules(case):
        scheme = schedule.scheme
        largest_bytes = case.largest_chunk_bytes(scheme)
        assert all(chunk.size_bytes <= largest_bytes for chunk in schedule.chunks)
        for span in schedule.spans:
            assert span.busy_ns == sum(case.charge_ns(scheme, c.size_bytes) for c in span.chunks)
        for span in schedule.spans[:-1]:
            assert span.idle_ns is not None
            assert span.busy_ns <= case.mu * span.idle_ns
        if scheme != "naive":
            assert schedule.buffer_bytes <= case.buffer_bytes


@given(case=cases())
@deterministic
def test_only_the_last_span_has_no_end_and_its_excess_is_told(case: Case) -> None:
    for schedule in schedules(case):
        assert [span.idle_ns for span in schedule.spans] == [*case.spans_ns[:-1], None]
        last_ns = case.spans_ns[-1] if case.spans_ns else 0
        busy_ns = schedule.spans[-1].busy_ns
        assert schedule.last_idle_ns == last_ns
        assert (schedule.spill_ns == 0) == (busy_ns <= case.mu * last_ns)
        assert schedule.spill_ns - 1 < max(0, busy_ns - case.mu * last_ns) <= schedule.spill_ns
        assert schedule.update_delay_ns == max(0, busy_ns - last_ns)
        assert schedule.iteration_delay_ns == schedule.upfront_ns + schedule.update_delay_ns


@given(case=cases())
@deterministic
def test_a_finite_span_is_full_before_the_next_is_used(case: Case) -> None:
    for schedule in schedules(case, ("naive", "pipelined", "unpipelined")):
        spans = schedule.spans
        for index, span in enumerate(spans[:-1]):
            if any(later.chunks for later in spans[index + 1 :]):
                assert span.idle_ns is not None
                free_ns = case.mu * span.idle_ns - span.busy_ns
                assert case.charge_ns(schedule.scheme, 1) > free_ns


@given(case=cases())
@deterministic
def test_blocking_sends_all_at_the_start(case: Case) -> None:
    schedule = case.schedule("blocking")
    assert schedule.chunks == schedule.upfront
    assert schedule.upfront_ns == sum(
        case.charge_ns("blocking", chunk.size_bytes) for chunk in schedule.upfront
    )
    assert all(span.busy_ns == 0 and not span.chunks for span in schedule.spans)
    assert schedule.spill_ns == schedule.update_delay_ns == 0


@given(case=cases())
@deterministic
def test_naive_sends_one_partition_a_span_and_needs_room_for_the_largest(case: Case) -> None:
    schedule = case.schedule("naive")
    for span in schedule.spans:
        assert len({chunk.replica for chunk in span.chunks}) == len(span.chunks)
    partitions = [sum(chunk.size_bytes for chunk in span.chunks) for span in schedule.spans]
    assert schedule.buffer_bytes == max(partitions)


@given(case=cases())
@deterministic
def test_both_hops_replayed_with_the_sub_buffers_keep_to_the_charged_time(case: Case) -> None:
    """Receive into a free sub-buffer, copy it out in order; the network is done when charged."""
    one_copy = replace(case, remote_copies=min(1, case.remote_copies))
    copy_link = one_copy.copy_link or one_copy.link
    for span in one_copy.schedule("pipelined").spans:
        network_end_ns = 0
        copied_ns: list[int] = []
        for index, chunk in enumerate(span.chunks):
            reused = index - one_copy.sub_buffers
            free_ns = copied_ns[reused] if reused >= 0 else 0
            received_ns = max(network_end_ns, free_ns) + one_copy.link.transfer_ns(chunk.size_bytes)
            copy_start_ns = max(received_ns, copied_ns[-1] if copied_ns else 0)
            copied_ns.append(copy_start_ns + copy_link.transfer_ns(chunk.size_bytes))
            network_end_ns = received_ns
        assert network_end_ns <= span.busy_ns


# Algorithm 2, line by line, with each printed defect to be switched on by itself.


class NeverEndsError(Exception):
    """The pseudo-code took more steps than any schedule of its input can have."""


def algorithm_2(
    case: Case,
    *,
    charge_remaining: bool = False,
    copy_too_many: bool = False,
    no_exit: bool = False,
) -> list[list[int]]:
    """Return chunk sizes span by span; a finite span's fill is their charge over mu t."""
    largest = case.buffer_bytes // case.sub_buffers
    last_copy = case.remote_copies if copy_too_many else case.remote_copies - 1
    copy, remaining, steps = 0, case.checkpoint_bytes, 0
    per_span: list[list[int]] = []
    for number, span_ns in enumerate(case.spans_ns, 1):
        finite = number < len(case.spans_ns)
        free = int(case.mu * span_ns) if finite else float("inf")
        per_span.append([])
        while free > 0:
            steps += 1
            if steps > 100_000:
                raise NeverEndsError
            if free >= case.link.transfer_ns(largest):
                size = largest
            else:
                assert isinstance(free, int)
                link = case.link
                size = max(0, (free - link.alpha_ns) * link.bandwidth_bps // (8 * 10**9))
            size = min(remaining, size)
            if size > 0:
                remaining -= size
                free -= case.link.transfer_ns(remaining if charge_remaining else size)
                per_span[-1].append(size)
            elif not no_exit:
                break
            if remaining == 0:
                if copy < last_copy:
                    copy, remaining = copy + 1, case.checkpoint_bytes
                else:
                    return per_span
    return per_span


def sizes_per_span(schedule: Schedule) -> list[list[int]]:
    return [[chunk.size_bytes for chunk in span.chunks] for span in schedule.spans]


@given(case=cases())
@deterministic
def test_the_corrected_pseudo_code_gives_the_same_chunks(case: Case) -> None:
    assume(case.remote_copies and case.checkpoint_bytes and case.spans_ns and case.sub_buffers > 1)
    network_only = replace(case, copy_link=None)
    expected = algorithm_2(network_only)
    expected += [[]] * (len(case.spans_ns) - len(expected))
    assert sizes_per_span(network_only.schedule("pipelined")) == expected


SAMPLE = Case(
    spans_ns=(30 * MS, 12 * MS, 25 * MS, 18 * MS, 100 * MS),
    checkpoint_bytes=GB,
    remote_copies=1,
    link=Link(alpha_ns=100_000, bandwidth_bps=100 * GB),
    buffer_bytes=128 * MB,
    sub_buffers=4,
    mu=Fraction(4, 5),
    copy_link=None,
)


def fill(case: Case, sizes: Sequence[Sequence[int]]) -> list[float]:
    return [
        sum(case.link.transfer_ns(size) for size in span) / float(case.mu * span_ns)
        for span, span_ns in zip(sizes[:-1], case.spans_ns[:-1], strict=True)
    ]


def test_the_sample_fills_its_finite_spans() -> None:
    schedule = SAMPLE.schedule("pipelined")
    assert min(fill(SAMPLE, sizes_per_span(schedule))) > 0.997  # less than alpha is left
    assert schedule.spill_ns == 0


def test_printed_line_17_leaves_spans_nearly_empty() -> None:
    printed = algorithm_2(SAMPLE, charge_remaining=True)
    assert [len(span) for span in printed[:-1]] == [1, 1, 1, 1]
    assert max(fill(SAMPLE, printed)) < 0.3
    assert printed != sizes_per_span(SAMPLE.schedule("pipelined"))


@pytest.mark.parametrize("remote_copies", [1, 2])
def test_printed_line_21_sends_one_copy_too_many(remote_copies: int) -> None:
    case = replace(SAMPLE, remote_copies=remote_copies)
    printed = algorithm_2(case, copy_too_many=True)
    assert sum(map(sum, printed)) == (remote_copies + 1) * GB
    assert sum(map(sum, sizes_per_span(case.schedule("pipelined")))) == remote_copies * GB


@pytest.mark.parametrize("short_ns", [1, 100_000, 125_000])
def test_the_printed_loop_never_leaves_a_span_shorter_than_alpha(short_ns: int) -> None:
    case = replace(SAMPLE, spans_ns=(short_ns, *SAMPLE.spans_ns))
    schedule = case.schedule("pipelined")
    assert schedule.spans[0].chunks == ()
    assert sum(chunk.size_bytes for chunk in schedule.chunks) == GB
    if int(short_ns * case.mu) > 0:
        with pytest.raises(NeverEndsError):
            algorithm_2(case, no_exit=True)


def test_the_paper_s_cluster_hides_a_checkpoint_that_blocking_shows() -> None:
    """GPT-2 40B on p3dn: 4.4 s of checkpoint (Fig. 16), here at the 54 Gbps that it implies."""
    link = Link(alpha_ns=100_000, bandwidth_bps=54 * GB // 8)
    case = Case(
        spans_ns=(1600 * MS, 900 * MS, 1300 * MS, 1900 * MS),
        checkpoint_bytes=int(12 * 40.5e9 / 128),
        remote_copies=1,
        link=link,
        buffer_bytes=128 * MB,
        sub_buffers=4,
        mu=Fraction(4, 5),
        copy_link=None,
    )
    delay_s = {name: case.schedule(name).iteration_delay_ns / 1e9 for name in SCHEMES}
    assert delay_s["blocking"] == pytest.approx(4.5, abs=0.1)
    assert delay_s["pipelined"] == 0
    assert delay_s["unpipelined"] > 3
    assert case.schedule("pipelined").buffer_bytes == 128 * MB
    assert case.schedule("naive").buffer_bytes > 1 * GB


def test_nothing_to_send_gives_empty_spans() -> None:
    for case in (
        replace(SAMPLE, remote_copies=0),
        replace(SAMPLE, checkpoint_bytes=0),
    ):
        for scheme in SCHEMES:
            schedule = case.schedule(scheme)
            assert schedule.chunks == ()
            assert schedule.iteration_delay_ns == schedule.buffer_bytes == 0
            assert len(schedule.spans) == len(case.spans_ns)


def test_without_idle_spans_everything_delays_the_update() -> None:
    case = replace(SAMPLE, spans_ns=(), checkpoint_bytes=40 * MB)
    schedule = case.schedule("pipelined")
    assert schedule.chunks == (Chunk(32 * MB, 0), Chunk(8 * MB, 0))
    assert schedule.spill_ns == schedule.update_delay_ns == 200_000 + 3_200_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans_ns": (5, -1)}, r"spans_ns\[1\] is -1"),
        ({"checkpoint_bytes": -1}, "checkpoint_bytes is -1"),
        ({"remote_copies": -1}, "remote_copies is -1"),
        ({"sub_buffers": 0}, "sub_buffers is 0"),
        ({"buffer_bytes": 3}, "at least one byte for each of 4 sub-buffers"),
        ({"mu": Fraction(0)}, "mu is 0"),
        ({"mu": Fraction(6, 5)}, "mu is 6/5"),
    ],
)
@schemes
def test_a_bad_argument_is_named(scheme: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SAMPLE, **change).schedule(scheme)


def test_a_link_must_have_a_bandwidth() -> None:
    with pytest.raises(ValueError, match="bandwidth_bps is 0"):
        Link(alpha_ns=0, bandwidth_bps=0)
    with pytest.raises(ValueError, match="alpha_ns is -1"):
        Link(alpha_ns=-1, bandwidth_bps=1)
    with pytest.raises(ValueError, match="size_bytes is -1"):
        Link(alpha_ns=0, bandwidth_bps=1).transfer_ns(-1)


def test_the_mapping_names_the_schemes() -> None:
    assert SCHEMES["pipelined"] is schedule_pipelined
    assert [SCHEMES[name]((), 0, 0, Link(0, 1), 1, 1, Fraction(1)).scheme for name in SCHEMES] == [
        *SCHEMES
    ]


@deterministic
@given(st.lists(st.integers(0, 20), max_size=8), st.integers(0, 12))
def test_nothing_is_sent_in_short_spans_but_the_last(spans_ns: list[int], shortest_ns: int) -> None:
    usable = leave_short(spans_ns, shortest_ns)
    assert len(usable) == len(spans_ns)
    assert usable[-1:] == tuple(spans_ns[-1:])
    for before_ns, after_ns in zip(spans_ns[:-1], usable[:-1], strict=True):
        assert after_ns == (before_ns if before_ns >= shortest_ns else 0)
    schedule = schedule_pipelined(usable, 1000, 1, Link(0, 8 * 10**9), 64, 4, Fraction(1))
    sent = [span.chunks for span in schedule.spans]
    assert not any(
        chunks
        for chunks, span_ns in zip(sent[:-1], spans_ns[:-1], strict=False)
        if span_ns < shortest_ns
    )


@deterministic
@given(buffer_bytes=st.integers(4, 10**6), remote_copies=st.integers(1, 10**6), data=st.data())
@pytest.mark.parametrize("scheme", ["blocking", "unpipelined", "pipelined"])
def test_a_schedule_beyond_all_memory_is_refused_at_once(
    scheme: str, buffer_bytes: int, remote_copies: int, data: st.DataObject
) -> None:
    largest_bytes = buffer_bytes if scheme == "unpipelined" else buffer_bytes // 4
    too_much_bytes = largest_bytes * (CHUNKS_MAX // remote_copies) + 1
    size_bytes = data.draw(st.integers(too_much_bytes, max(too_much_bytes, 10**15)))
    chunks = remote_copies * -(-size_bytes // largest_bytes)
    assert chunks > CHUNKS_MAX
    with pytest.raises(ValueError, match=f"are {chunks} chunks"):
        SCHEMES[scheme](
            (1000,), size_bytes, remote_copies, Link(0, 10**9), buffer_bytes, 4, Fraction(1)
        )


def test_naive_sends_one_chunk_a_copy_whatever_the_buffer() -> None:
    schedule = SCHEMES["naive"]((1000,), 10**15, 2, Link(0, 10**9), 4, 4, Fraction(1))
    assert [chunk.size_bytes for chunk in schedule.chunks] == [10**15, 10**15]


@pytest.mark.parametrize(
    ("chunks", "spans", "said"),
    [
        ((Chunk(6, 0), Chunk(4, 0), Chunk(10, 1)), 2, ""),
        ((Chunk(6, 0), Chunk(3, 0), Chunk(10, 1)), 2, "sends 9 bytes of replica 0, which has 10"),
        ((Chunk(10, 0), Chunk(11, 1)), 2, "sends 11 bytes of replica 1, which has 10"),
        ((Chunk(10, 0),), 2, "sends 0 bytes of replica 1"),
        ((Chunk(10, 0), Chunk(10, 2)), 2, "expected 1 byte or more of replica 0 to 1"),
        ((Chunk(10, 0), Chunk(0, 1), Chunk(10, 1)), 2, "expected 1 byte or more"),
        ((Chunk(10, 0), Chunk(10, 1)), 3, "returned 2 spans: expected 3"),
    ],
)
def test_a_schedule_that_leaves_bytes_out_or_sends_them_twice_is_refused(
    chunks: tuple[Chunk, ...], spans: int, said: str
) -> None:
    plain = schedule_pipelined((0, 0), 0, 0, Link(0, 10**9), 4, 1, Fraction(1))
    empty, last = plain.spans
    own = replace(plain, scheme="own", spans=(empty, replace(last, chunks=chunks)))
    if not said:
        check_complete(own, spans, 10, 2)
        return
    with pytest.raises(ValueError, match=f"scheme own .*{said}"):
        check_complete(own, spans, 10, 2)

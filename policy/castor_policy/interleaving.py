"""Traffic interleaving (Gemini sec. 5): when each byte of a checkpoint travels.

Training traffic leaves idle timespans on the network. Algorithm 2 of the paper fills them with
chunks of the checkpoint, so that checkpoints cost training nothing. This module computes that
schedule, and those of the schemes that the paper compares it with (sec. 7.4, Fig. 16).

Rules of this module:

- Times are integer nanoseconds and sizes integer bytes. A chunk's time is rounded up, a span's
  usable time down, so that a sum of chunks never drifts past its span.
- A schedule lists its chunks span by span. The paper's output is one flat list, which does not say
  in which span a chunk travels.
- The last span has no end (Algorithm 2, line 2): what fits nowhere else is sent there, and the
  optimizer's update waits for it (invariant 2: the state that travels is never written). A
  schedule says by how much, in `Schedule.spill_ns` and `Schedule.update_delay_ns`.
- Replicas are sent one after the other, each in byte order. The machine's own replica does not use
  the network and is no part of a schedule.

The pseudo-code as printed has three defects, corrected here: line 17 charges the span for what
remains of the checkpoint instead of the chunk, line 21 sends one replica too many, and a span with
no room for a single byte is never left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Final, Protocol

from castor_policy.chunk_schedule import (
    Chunk,
    Link,
    Schedule,
    SpanSchedule,
    check_chunk_count,
)

EAGER: Final = "eager"
"""Not scheduled: sent as soon as there is something to send."""
NONE: Final = "none"
"""No checkpoint is taken; what the schemes are compared with."""


class Scheme(Protocol):
    """A way to send a checkpoint during an iteration; the entries of `SCHEMES`.

    Args:
        spans_ns: measured idle timespans of an iteration in their order, each >= 0.
        checkpoint_bytes: C, the size of one replica, >= 0.
        remote_copies: m - 1, how many replicas travel, >= 0.
        link: the network hop, sender GPU to receiver GPU.
        buffer_bytes: R, the GPU memory reserved at the receiver. "naive" takes what it needs.
        sub_buffers: p, their number; each has R/p bytes.
        mu: share of an idle span that may be used, 0 < mu <= 1; the rest absorbs its variance.
        copy_link: the hop from receiver GPU to receiver CPU. None: as fast as `link`, as the
            paper measured on p4d (sec. 5.2, footnote 2).

    Raises:
        ValueError: an argument is out of its range, a sub-buffer would hold no byte, or the
            checkpoint would take more than `CHUNKS_MAX` chunks.
    """

    def __call__(
        self,
        spans_ns: Sequence[int],
        checkpoint_bytes: int,
        remote_copies: int,
        link: Link,
        buffer_bytes: int,
        sub_buffers: int,
        mu: Fraction,
        copy_link: Link | None = None,
    ) -> Schedule:
        """Return the schedule."""
        ...


def schedule_pipelined(
    spans_ns: Sequence[int],
    checkpoint_bytes: int,
    remote_copies: int,
    link: Link,
    buffer_bytes: int,
    sub_buffers: int,
    mu: Fraction,
    copy_link: Link | None = None,
) -> Schedule:
    """Return Gemini's schedule: Algorithm 2, corrected, with its chunks span by span.

    Chunks of at most R/p fill each span in turn. While one sub-buffer receives, the others are
    copied to CPU memory, so a chunk costs its network time alone. Two things that the paper takes
    for granted are charged when they do not hold: where the copy is the slower hop, it sets the
    pace, and with a single sub-buffer (p = 1) nothing overlaps. Like the paper it does not charge
    the wait behind a short chunk, where one replica ends and the next begins: with p = 2 that can
    take up to the time of a chunk, with more sub-buffers it hardly arises.

    Arguments and errors as `Scheme` says. Source: Gemini sec. 5.2, 5.3, Algorithm 2.
    """
    _check(spans_ns, checkpoint_bytes, remote_copies, buffer_bytes, sub_buffers, mu)
    spans = _fill(
        spans_ns,
        checkpoint_bytes,
        remote_copies,
        largest_bytes=buffer_bytes // sub_buffers,
        charge_ns=_pipelined_charge(link, copy_link or link, sub_buffers),
        mu=mu,
    )
    sizes = [chunk.size_bytes for span in spans for chunk in span.chunks]
    buffer = min(sub_buffers, len(sizes)) * max(sizes, default=0)
    return _schedule("pipelined", spans_ns, spans, buffer_bytes=buffer, mu=mu)


def schedule_unpipelined(
    spans_ns: Sequence[int],
    checkpoint_bytes: int,
    remote_copies: int,
    link: Link,
    buffer_bytes: int,
    sub_buffers: int,
    mu: Fraction,
    copy_link: Link | None = None,
) -> Schedule:
    """Return the schedule with one undivided buffer of R: interleaved, but not pipelined.

    The next chunk waits until the buffer was copied to CPU memory, so a chunk costs both hops.
    `sub_buffers` is checked but makes no difference.

    Arguments and errors as `Scheme` says. Source: Gemini sec. 7.4, "interleave w/o pipeline".
    """
    _check(spans_ns, checkpoint_bytes, remote_copies, buffer_bytes, sub_buffers, mu)
    spans = _fill(
        spans_ns,
        checkpoint_bytes,
        remote_copies,
        largest_bytes=buffer_bytes,
        charge_ns=_both_hops(link, copy_link or link),
        mu=mu,
    )
    buffer = max((chunk.size_bytes for span in spans for chunk in span.chunks), default=0)
    return _schedule("unpipelined", spans_ns, spans, buffer_bytes=buffer, mu=mu)


def schedule_naive(
    spans_ns: Sequence[int],
    checkpoint_bytes: int,
    remote_copies: int,
    link: Link,
    buffer_bytes: int,
    sub_buffers: int,
    mu: Fraction,
    copy_link: Link | None = None,
) -> Schedule:
    """Return the schedule with one partition an idle span, as large as the span can carry.

    A partition goes out as one message for each replica that it holds bytes of. The receiver needs
    room for the largest partition, whatever R is: compare `Schedule.buffer_bytes` with the memory
    that is free. (The paper's run ended out of memory.) The copy to CPU memory happens after the
    span and is not charged. `buffer_bytes`, `sub_buffers` and `copy_link` make no difference.

    Arguments and errors as `Scheme` says. Source: Gemini sec. 5.2, 7.4, "naive interleave".
    """
    del copy_link
    _check(spans_ns, checkpoint_bytes, remote_copies, buffer_bytes, sub_buffers, mu)
    spans = _fill(
        spans_ns,
        checkpoint_bytes,
        remote_copies,
        largest_bytes=checkpoint_bytes,
        charge_ns=link.transfer_ns,
        mu=mu,
    )
    partitions = (sum(chunk.size_bytes for chunk in span.chunks) for span in spans)
    return _schedule("naive", spans_ns, spans, buffer_bytes=max(partitions), mu=mu)


def schedule_blocking(
    spans_ns: Sequence[int],
    checkpoint_bytes: int,
    remote_copies: int,
    link: Link,
    buffer_bytes: int,
    sub_buffers: int,
    mu: Fraction,
    copy_link: Link | None = None,
) -> Schedule:
    """Return the schedule that sends everything when the iteration starts, while training waits.

    It is sent as `schedule_pipelined` sends it, in chunks of R/p; the idle spans stay empty.

    Arguments and errors as `Scheme` says. Source: Gemini sec. 7.4, "blocking".
    """
    _check(spans_ns, checkpoint_bytes, remote_copies, buffer_bytes, sub_buffers, mu)
    (upfront,) = _fill(
        (),
        checkpoint_bytes,
        remote_copies,
        largest_bytes=buffer_bytes // sub_buffers,
        charge_ns=_pipelined_charge(link, copy_link or link, sub_buffers),
        mu=mu,
    )
    largest = max((chunk.size_bytes for chunk in upfront.chunks), default=0)
    return Schedule(
        scheme="blocking",
        upfront=upfront.chunks,
        upfront_ns=upfront.busy_ns,
        spans=_fill(spans_ns, 0, 0, largest_bytes=1, charge_ns=link.transfer_ns, mu=mu),
        last_idle_ns=spans_ns[-1] if spans_ns else 0,
        buffer_bytes=min(sub_buffers, len(upfront.chunks)) * largest,
        spill_ns=0,
        update_delay_ns=0,
    )


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "blocking": schedule_blocking,
        "naive": schedule_naive,
        "unpipelined": schedule_unpipelined,
        "pipelined": schedule_pipelined,
    }
)
"""The schemes of sec. 7.4 by name; "pipelined" is Gemini."""


def _check(
    spans_ns: Sequence[int],
    checkpoint_bytes: int,
    remote_copies: int,
    buffer_bytes: int,
    sub_buffers: int,
    mu: Fraction,
) -> None:
    for index, span_ns in enumerate(spans_ns):
        if span_ns < 0:
            raise ValueError(f"spans_ns[{index}] is {span_ns}: an idle span lasts 0 ns or more")
    if checkpoint_bytes < 0:
        raise ValueError(f"checkpoint_bytes is {checkpoint_bytes}: give 0 bytes or more")
    if remote_copies < 0:
        raise ValueError(f"remote_copies is {remote_copies}: give m - 1, which is 0 or more")
    if sub_buffers < 1:
        raise ValueError(f"sub_buffers is {sub_buffers}: give 1 sub-buffer or more")
    if buffer_bytes < sub_buffers:
        raise ValueError(
            f"buffer_bytes is {buffer_bytes}: give at least one byte for each of "
            f"{sub_buffers} sub-buffers"
        )
    if not 0 < mu <= 1:
        raise ValueError(f"mu is {mu}: give a share of the idle time above 0 and up to 1")


def _both_hops(link: Link, copy_link: Link) -> Callable[[int], int]:
    return lambda size_bytes: link.transfer_ns(size_bytes) + copy_link.transfer_ns(size_bytes)


def _pipelined_charge(link: Link, copy_link: Link, sub_buffers: int) -> Callable[[int], int]:
    if sub_buffers == 1:
        return _both_hops(link, copy_link)
    return lambda size_bytes: max(link.transfer_ns(size_bytes), copy_link.transfer_ns(size_bytes))


def _fill(
    spans_ns: Sequence[int],
    checkpoint_bytes: int,
    remote_copies: int,
    *,
    largest_bytes: int,
    charge_ns: Callable[[int], int],
    mu: Fraction,
) -> tuple[SpanSchedule, ...]:
    """Fill span after span, the last without end, with chunks of at most `largest_bytes`."""
    check_chunk_count(checkpoint_bytes, largest_bytes, remote_copies)
    spans: list[SpanSchedule] = []
    replica = 0
    remaining_bytes = checkpoint_bytes if remote_copies else 0
    for idle_ns in (*spans_ns[:-1], None):
        budget_ns = None if idle_ns is None else int(idle_ns * mu)
        chunks: list[Chunk] = []
        busy_ns = 0
        while remaining_bytes:
            size_bytes = min(largest_bytes, remaining_bytes)
            if budget_ns is not None:
                size_bytes = _largest_within(size_bytes, budget_ns - busy_ns, charge_ns)
                if size_bytes == 0:
                    break  # without this the printed algorithm never leaves the span
            chunks.append(Chunk(size_bytes, replica))
            busy_ns += charge_ns(size_bytes)
            remaining_bytes -= size_bytes
            if remaining_bytes == 0 and replica < remote_copies - 1:
                replica += 1
                remaining_bytes = checkpoint_bytes
        spans.append(SpanSchedule(idle_ns, tuple(chunks), busy_ns))
    return tuple(spans)


def _largest_within(limit_bytes: int, budget_ns: int, charge_ns: Callable[[int], int]) -> int:
    """Return the largest size up to `limit_bytes` whose charge fits the budget; 0 if none does.

    The charge never falls with the size, so halving finds it, whichever hops it is made of.
    """
    if charge_ns(limit_bytes) <= budget_ns:
        return limit_bytes
    fits, too_large = 0, limit_bytes
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if charge_ns(middle) <= budget_ns:
            fits = middle
        else:
            too_large = middle
    return fits


def _schedule(
    scheme: str,
    spans_ns: Sequence[int],
    spans: tuple[SpanSchedule, ...],
    *,
    buffer_bytes: int,
    mu: Fraction,
) -> Schedule:
    last_idle_ns = spans_ns[-1] if spans_ns else 0
    last_busy_ns = spans[-1].busy_ns
    return Schedule(
        scheme=scheme,
        upfront=(),
        upfront_ns=0,
        spans=spans,
        last_idle_ns=last_idle_ns,
        buffer_bytes=buffer_bytes,
        spill_ns=max(0, last_busy_ns - int(last_idle_ns * mu)),
        update_delay_ns=max(0, last_busy_ns - last_idle_ns),
    )

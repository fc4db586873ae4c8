"""A hop, chunks, and a schedule of them: what `interleaving` computes with.

Times are integer nanoseconds and sizes integer bytes. A schedule lists its chunks span by span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BITS_NS = 8 * 10**9
"""Bits in a byte, times nanoseconds in a second."""

CHUNKS_MAX = 10**6
"""Most chunks of one checkpoint. The largest of the paper's take a few hundred; beyond this a
schedule would fill the memory of whoever asks for it, and hardly carry more than start-up times."""


@dataclass(frozen=True, slots=True)
class Link:
    """One hop with the paper's cost f(s) = alpha + s/B (sec. 5.3).

    Attributes:
        alpha_ns: start-up time of each transfer, >= 0.
        bandwidth_bps: bits per second, > 0.

    Raises:
        ValueError: a value is out of its range.
    """

    alpha_ns: int
    bandwidth_bps: int

    def __post_init__(self) -> None:
        if self.alpha_ns < 0:
            raise ValueError(f"alpha_ns is {self.alpha_ns}: give a start-up time of 0 ns or more")
        if self.bandwidth_bps <= 0:
            raise ValueError(
                f"bandwidth_bps is {self.bandwidth_bps}: give more than 0 bits per second"
            )

    def transfer_ns(self, size_bytes: int) -> int:
        """Return f(size_bytes), rounded up to whole nanoseconds.

        Raises:
            ValueError: the size is negative.
        """
        if size_bytes < 0:
            raise ValueError(f"size_bytes is {size_bytes}: give 0 bytes or more")
        return self.alpha_ns - (-size_bytes * BITS_NS // self.bandwidth_bps)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive bytes of one replica that travel as one message.

    Attributes:
        size_bytes: its length, > 0. It starts where the replica's previous chunk ended.
        replica: which remote copy, 0 to m - 2.
    """

    size_bytes: int
    replica: int


@dataclass(frozen=True, slots=True)
class SpanSchedule:
    """What one idle timespan carries.

    Attributes:
        idle_ns: its measured idle time; None for the last span, which ends when its traffic does.
        chunks: in the order of sending.
        busy_ns: the time that they take. At most mu * idle_ns where idle_ns is given.
    """

    idle_ns: int | None
    chunks: tuple[Chunk, ...]
    busy_ns: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the chunks of one checkpoint travel within an iteration.

    Attributes:
        scheme: a key of `SCHEMES`.
        upfront: sent when the iteration starts, while training waits (scheme "blocking" only).
        upfront_ns: how long that takes.
        spans: one for each measured idle span. If none was measured there is one all the same, of
            no idle time: the moment before the update, when what is left must be sent.
        last_idle_ns: the measured idle time of the last span.
        buffer_bytes: GPU memory that the scheme needs for received chunks, at its peak. It is the
            result of a scheme without a bound on it ("naive"), and at most R with the others.
        spill_ns: by how much the last span's traffic exceeds mu times its measured idle time, that
            is, what was meant for it. 0: the checkpoint fits.
        update_delay_ns: by how much it exceeds the whole idle time, so that the update waits, if
            the span is as long as it was measured. At most `spill_ns`; the margin 1 - mu is there
            to absorb the difference.
    """

    scheme: str
    upfront: tuple[Chunk, ...]
    upfront_ns: int
    spans: tuple[SpanSchedule, ...]
    last_idle_ns: int
    buffer_bytes: int
    spill_ns: int
    update_delay_ns: int

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """Every chunk in the order of sending."""
        return self.upfront + tuple(chunk for span in self.spans for chunk in span.chunks)

    @property
    def iteration_delay_ns(self) -> int:
        """How much longer the iteration takes than without a checkpoint."""
        return self.upfront_ns + self.update_delay_ns


def leave_short(spans_ns: Sequence[int], shortest_ns: int) -> tuple[int, ...]:
    """Return the spans with those below `shortest_ns` as 0, so that nothing is sent in them.

    Ranks do not come to a span at one time. What is sent in a span that is no longer than they
    differ meets the training traffic behind it. The last span stays: it has no end.
    """
    usable = [span_ns if span_ns >= shortest_ns else 0 for span_ns in spans_ns[:-1]]
    return (*usable, *spans_ns[-1:])


def check_complete(schedule: Schedule, spans: int, size_bytes: int, copies: int) -> None:
    """Check that a schedule sends each replica once, whole and in the spans that there are.

    Whatever scheme made it: what it leaves out would be missing after a failure.

    Args:
        schedule: as a scheme returned it.
        spans: how many idle spans it was given; for none it has one all the same.
        size_bytes: of one replica.
        copies: how many replicas travel.

    Raises:
        ValueError: naming the scheme.
    """
    if len(schedule.spans) != max(1, spans):
        raise ValueError(
            f"scheme {schedule.scheme} returned {len(schedule.spans)} spans: expected "
            f"{max(1, spans)}, one for each that it was given"
        )
    sent = [0] * copies
    for chunk in schedule.chunks:
        if not 0 <= chunk.replica < copies or chunk.size_bytes <= 0:
            raise ValueError(
                f"scheme {schedule.scheme} sends {chunk}: expected 1 byte or more of replica 0 to "
                f"{copies - 1}"
            )
        sent[chunk.replica] += chunk.size_bytes
    for replica, sent_bytes in enumerate(sent):
        if sent_bytes != size_bytes:
            raise ValueError(
                f"scheme {schedule.scheme} sends {sent_bytes} bytes of replica {replica}, which "
                f"has {size_bytes}: every byte travels once"
            )


def check_chunk_count(size_bytes: int, largest_bytes: int, copies: int = 1) -> None:
    """Check that `copies` of so many bytes go in at most `CHUNKS_MAX` chunks of `largest_bytes`.

    Raises:
        ValueError: they do not.
    """
    chunks = copies * -(-size_bytes // largest_bytes) if size_bytes else 0
    if chunks > CHUNKS_MAX:
        raise ValueError(
            f"{size_bytes} bytes in chunks of {largest_bytes}, {copies} times, are {chunks} chunks"
            f": give a larger buffer or fewer sub-buffers, for at most {CHUNKS_MAX}"
        )

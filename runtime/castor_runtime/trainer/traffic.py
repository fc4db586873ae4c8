"""Which bytes travel when: a schedule of `castor_policy.interleaving` as pieces of a part.

Every rank computes the pieces of its own part and of the parts that it receives from the same
numbers, so that sender and receiver agree without a word. The k-th pieces of all ranks travel
together; that keeps NCCL's paired sends and receives in one order everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from castor_configs.schemes import SCHEMES
from castor_policy.chunk_schedule import Chunk, Link, Schedule, check_complete, leave_short
from castor_policy.defaults import MU, SUB_BUFFERS
from castor_policy.in_flight import chunks_in_flight
from castor_policy.interleaving import EAGER


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive bytes of a part that travel as one message.

    Attributes:
        span: the idle span that releases it; 0 begins with the iteration.
        replica: which remote replica, 0 to m - 2.
        start: its first byte.
        end: after its last byte.
    """

    span: int
    replica: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """How checkpoints travel; the same on every rank.

    Attributes:
        scheme: `EAGER`, or a key of `SCHEMES`.
        chunk_bytes: largest piece of `EAGER`.
        remote_copies: m - 1.
        spans_ns: measured idle spans; empty for `EAGER`.
        link: measured; None for `EAGER`.
        copy_link: the hop from the buffer for received chunks to CPU memory; None if there is none
            (then the policy reckons with one as fast as the network, as the simulator does).
        buffer_bytes: R; 0: `sub_buffers` chunks.
        sub_buffers: p, each of R/p, which bounds the pieces of "pipelined" and "blocking".
        mu: share of an idle span that is used.
        shortest_span_ns: shorter ones are left alone.

    Raises:
        ValueError: the scheme is not known, or the buffer's sizes are out of their range.
    """

    scheme: str
    chunk_bytes: int
    remote_copies: int
    spans_ns: tuple[int, ...] = ()
    link: Link | None = None
    copy_link: Link | None = None
    buffer_bytes: int = 0
    sub_buffers: int = SUB_BUFFERS
    mu: Fraction = Fraction(repr(MU))
    shortest_span_ns: int = 0

    def __post_init__(self) -> None:
        if self.scheme != EAGER and self.scheme not in SCHEMES:
            known = ", ".join([EAGER, *SCHEMES])
            raise ValueError(f"there is no scheme {self.scheme!r}: choose one of {known}")
        if self.sub_buffers < 1:
            raise ValueError(f"sub_buffers is {self.sub_buffers}: give 1 sub-buffer or more")
        if 0 < self.buffer_bytes < self.sub_buffers:
            raise ValueError(
                f"buffer_bytes is {self.buffer_bytes}: give at least one byte for each of "
                f"{self.sub_buffers} of them, or 0"
            )

    @property
    def reserved_bytes(self) -> int:
        """R, the memory for received chunks."""
        return self.buffer_bytes or self.sub_buffers * self.chunk_bytes

    @property
    def pieces_in_flight(self) -> int | None:
        """How many rounds may be under way; None: any number. All is eager until scheduled."""
        return chunks_in_flight(EAGER if self.link is None else self.scheme, self.sub_buffers)

    def schedule(self, part_bytes: int) -> Schedule | None:
        """Return when the chunks of a part of that size travel; None for `EAGER`."""
        if self.link is None:
            return None
        schedule = SCHEMES[self.scheme](
            leave_short(self.spans_ns, self.shortest_span_ns),
            part_bytes,
            self.remote_copies,
            self.link,
            self.reserved_bytes,
            self.sub_buffers,
            self.mu,
            self.copy_link,
        )
        check_complete(schedule, len(self.spans_ns), part_bytes, self.remote_copies)
        return schedule

    def round_spans(self, sizes_bytes: Collection[int]) -> tuple[int, ...]:
        """Return the span of each round, the latest of any rank's piece in it: the same for all.

        Args:
            sizes_bytes: of all ranks' parts.
        """
        spans: list[int] = []
        for size_bytes in set(sizes_bytes):
            pieces = self.pieces(size_bytes)
            spans += [0] * (len(pieces) - len(spans))
            spans[: len(pieces)] = map(max, spans, (piece.span for piece in pieces))
        return tuple(accumulate(spans, max))

    def pieces(self, part_bytes: int) -> tuple[Piece, ...]:
        """Return the pieces of a part of that size, in the order of sending."""
        schedule = self.schedule(part_bytes)
        if schedule is None:
            return tuple(
                Piece(0, replica, start, min(start + self.chunk_bytes, part_bytes))
                for start in range(0, part_bytes, self.chunk_bytes)
                for replica in range(self.remote_copies)
            )
        spans = [schedule.upfront, *(span.chunks for span in schedule.spans)]
        return _placed([(max(0, i - 1), chunk) for i, row in enumerate(spans) for chunk in row])


def _placed(chunks: Sequence[tuple[int, Chunk]]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    ends: dict[int, int] = {}
    for span, chunk in chunks:
        start = ends.get(chunk.replica, 0)
        ends[chunk.replica] = start + chunk.size_bytes
        pieces.append(Piece(span, chunk.replica, start, ends[chunk.replica]))
    return tuple(pieces)

"""How far a peer's clock is off, as the answers to pings tell it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_runtime.transport import reading
from castor_runtime.transport.reading import PeerClock, ask_clock

US = 1_000
S = 1_000_000_000
TOLD_APART_NS = 1_000
"""What the two clocks of one host are read apart by, which the uncertainty allows for."""

Ping = tuple[int, int, int]
"""How long the question travels, is kept there, and the answer travels, in nanoseconds."""


def measured(pings: Sequence[Ping], ahead_ns: int) -> PeerClock:
    """Return what is found where the peer's clock is ahead by so much."""
    now_ns = 77 * S
    left = iter(pings)

    def ping(*_: object) -> dict[str, Any]:
        nonlocal now_ns
        forth_ns, kept_ns, back_ns = next(left)
        received_ns = now_ns + forth_ns + ahead_ns
        now_ns += forth_ns + kept_ns + back_ns
        return dict(zip(reading.CLOCK, (received_ns, received_ns + kept_ns), strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "ping", ping)
        patch.setattr(reading, "time", SimpleNamespace(monotonic_ns=lambda: now_ns))
        channel: Any = None
        timeouts: Any = None
        found = ask_clock(channel, timeouts, samples=len(pings), clock_ns=lambda: now_ns)
    assert next(left, None) is None
    return found


def test_the_middle_of_an_even_way_is_the_offset_whatever_it_takes_and_is_kept() -> None:
    assert measured([(30_000 * US, 9 * S, 30_000 * US)], 5 * S) == PeerClock(
        5 * S, 30_000 * US + TOLD_APART_NS
    )
    assert measured([(8, 0, 8)], -5 * S).offset_ns == -5 * S


def test_the_fastest_answer_counts() -> None:
    slow, fast = (900_000 * US, 0, 100_000 * US), (20_000 * US, 0, 10_000 * US)
    for pings in ([slow, fast, slow], [fast, slow], [slow, fast]):
        assert measured(pings, S) == PeerClock(S + 5_000 * US, 15_000 * US + TOLD_APART_NS)


ways = st.integers(0, 10 * S)


@settings(max_examples=50)
@given(st.lists(st.tuples(ways, ways, ways), min_size=1, max_size=5), st.integers(-S, S))
def test_the_truth_is_no_further_away_than_is_said(pings: list[Ping], ahead_ns: int) -> None:
    found = measured(pings, ahead_ns)
    assert abs(found.offset_ns - ahead_ns) <= found.uncertainty_ns
    shortest_ns = min(forth + back for forth, _, back in pings)
    assert found.uncertainty_ns == shortest_ns // 2 + TOLD_APART_NS

"""Fits of a hop's start-up time and bandwidth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.chunk_schedule import Link
from castor_policy.link_fit import fit_link


@given(
    alpha=st.integers(0, 10**7),
    bandwidth=st.integers(10**6, 10**11),
    sizes=st.lists(st.integers(1, 10**7), min_size=2, max_size=6, unique=True),
)
def test_a_link_is_found_again_from_its_times(alpha: int, bandwidth: int, sizes: list[int]) -> None:
    link = Link(alpha, bandwidth)
    found = fit_link(sizes, [link.transfer_ns(size) for size in sizes])
    for size in sizes:
        assert found.transfer_ns(size) == pytest.approx(link.transfer_ns(size), rel=0.01, abs=20)


def test_a_fit_never_starts_below_zero() -> None:
    assert fit_link([100, 200], [100, 300]).alpha_ns == 0
    assert fit_link([100, 200], [300, 300]).alpha_ns == 0
    for sizes, times in (([100], [1]), ([100, 100], [1, 2]), ([1, 2], [1]), ([1, 2], [0, 1])):
        with pytest.raises(ValueError, match="two sizes or more"):
            fit_link(sizes, times)

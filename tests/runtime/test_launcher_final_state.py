"""The final state of all ranks, from what the agents say of their own."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_runtime.launcher.final_state import final_state

digests = st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=6)


@given(digests, st.randoms(use_true_random=False))
def test_the_final_state_is_a_hash_over_ranks_in_order(ranks: list[str], rng: object) -> None:
    finals = [{"iteration": 7, "ranks": {str(r): d}} for r, d in enumerate(ranks)]
    expected = hashlib.sha256("".join(ranks).encode()).hexdigest()
    for order in itertools.islice(itertools.permutations(finals), 6):
        assert final_state(order, len(ranks)) == (7, expected)
    flat = [{"iteration": 7, **{str(r): d for r, d in enumerate(ranks)}}]
    assert final_state(flat, len(ranks)) == (7, expected)
    assert final_state(finals, len(ranks) + 1) == (None, None)


def test_agents_that_disagree_on_the_final_state_are_an_error() -> None:
    with pytest.raises(ValueError, match="different iterations"):
        final_state([{"iteration": 7, "ranks": {"0": "a"}}, {"iteration": 8, "ranks": {}}], 1)
    with pytest.raises(ValueError, match="rank 0"):
        final_state([{"ranks": {"0": "a"}}, {"ranks": {"0": "b"}}], 1)

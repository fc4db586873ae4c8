"""Which iterations are checkpointed, and that nobody waits for one that is not."""

from __future__ import annotations

import math

import numba
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.persist_rounds import PERSIST_AHEAD_S, PersistRounds
from castor_policy.job_options import PersistenceOptions, TrafficOptions
from castor_policy.period import is_due, last_due, next_due

COMPILED = [numba.njit(function) for function in (is_due, last_due, next_due)]


@given(st.integers(0, 10**9), st.integers(1, 10**4))
def test_the_due_iterations_are_the_multiples_compiled_or_not(iteration: int, every: int) -> None:
    last, following = last_due(iteration, every), next_due(iteration, every)
    assert last <= iteration <= following
    assert following - last == (0 if is_due(iteration, every) else every)
    assert is_due(last, every)
    assert is_due(following, every)
    expected = [is_due(iteration, every), last, following]
    assert [function(iteration, every) for function in COMPILED] == expected


def asked(every: int, iteration_s: float, until_s: float) -> tuple[int, int]:
    """Return which iteration is asked for, and the newest one at that time, in a steady pace."""
    spec = JobSpec(
        job="j", machines=1, ranks_per_machine=1, placement="mixed", replicas=((0,),),
        script="train.py",
        persistence=PersistenceOptions(tiers=("storage",), every_s=5.0),
        traffic=TrafficOptions(checkpoint_every=every),
    )  # fmt: skip
    rounds = PersistRounds(spec, 0.0)
    for tick in range(round(until_s * 10)):
        now_s = tick / 10
        newest = int(now_s / iteration_s)
        wanted = rounds.due(newest, now_s)
        if wanted is not None:
            return wanted, newest
    raise AssertionError(f"nothing was asked for in {until_s} s")


@pytest.mark.parametrize("every", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("iteration_s", [0.01, 0.2, 3.0])
def test_what_is_persisted_is_checkpointed_and_comes_soon(every: int, iteration_s: float) -> None:
    wanted, newest = asked(every, iteration_s, 10 + 3 * every * iteration_s)
    assert is_due(wanted, every)
    assert newest + 2 <= wanted
    # All hear of it in time, and nobody waits for it for long.
    assert (wanted - newest) * iteration_s >= PERSIST_AHEAD_S - iteration_s
    assert wanted - newest <= 2 + 4 * (2 + math.ceil(PERSIST_AHEAD_S / iteration_s))

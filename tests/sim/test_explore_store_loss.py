"""The agents under a store that loses its data, goes back to a backup, or has no space."""

from __future__ import annotations

import random

import pytest

from castor_policy.agents import root
from castor_sim.explore.run import Search, run_schedule
from castor_sim.explore.schedule import Fault


def schedule(seed: int) -> list[Fault]:
    """A fault of the store's, and often another one beside it."""
    draw = random.Random(seed)
    after = draw.choice(["", "", "gather", "load"])
    faults = [
        Fault(
            "store",
            draw.uniform(0, 12) if not after or draw.random() < 0.5 else 0.0,
            span_s=draw.choice([0.2, 1.0, 4.0]),
            value=float(draw.choice([1, 1, 2, 2, 3])),
            after=after,
            lag_s=draw.choice([0.0, 0.05, 0.5, 2.0]) if after else 0.0,
        )
    ]
    if draw.random() < 0.6:
        kind = draw.choice(["trainer", "agent", "crash", "hang"])
        span_s = draw.choice([0.5, 2.0]) if kind in ("agent", "crash") else 0.0
        faults.append(Fault(kind, draw.uniform(0, 14), target=draw.randrange(4), span_s=span_s))
    return faults


@pytest.mark.long
def test_no_invariant_breaks_when_the_store_loses_its_data() -> None:
    for seed in (*range(40), 456, 469):
        found = run_schedule(Search(), seed, schedule(seed))
        assert found is None, found


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        # Two that loaded a generation twice: of those who were left, one knew, and did not say.
        (
            12603,
            (
                Fault("agent", 3.8, 3, span_s=3.79),
                Fault("crash", 4.3, 3, value=1.0),
                Fault("store", 5.0, span_s=2.242, value=2.0),
            ),
        ),
        (
            3817,
            (
                Fault("crash", 4.0, 0, span_s=4.1, value=1.0),
                Fault("store", 5.1, span_s=6.0, value=2.0),
            ),
        ),
        (
            11542,  # all who knew were gone, but their memory said in which generation it was made
            (
                Fault("store", 0.0, span_s=9.0, value=1.0, after="load", lag_s=0.606),
                Fault("agent", 2.8, 1, span_s=5.715),
                Fault("agent", 5.2, 0, span_s=3.186),
            ),
        ),
        (
            1997,  # an onlooker alone knew that a generation had begun: it did not say so
            (
                Fault("crash", 1.0, 2, span_s=1.578),
                Fault("crash", 2.9, 1, span_s=4.617, value=1.0),
                Fault("store", 5.9, 0, span_s=7.0, value=1.0),
            ),
        ),
        (
            47928,  # the only one that knew was there, and came back later than those who did not
            (
                Fault("store", 4.0, 1, span_s=7.0, value=1.0, after="gather", lag_s=0.101),
                Fault("crash", 4.157, 0, span_s=8.63, value=1.0),
            ),
        ),
    ],
)
def test_no_generation_is_used_twice(seed: int, faults: tuple[Fault, ...]) -> None:
    assert run_schedule(Search(), seed, faults) is None


def test_an_answer_to_what_was_asked_before_the_loss_is_no_second_loss() -> None:
    """One agent read twice at once; it forgot whom the first answer had told it of."""
    faults = (
        Fault("store", 2.028, span_s=5.626),
        Fault("store", 2.4, 4, span_s=6.324, value=1.0),
    )
    assert run_schedule(Search(), 823, faults) is None


def test_the_explorer_sees_a_root_that_forgets_what_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(root, "repaired", lambda *_told, **_more: None)
    assert any(run_schedule(Search(), seed, schedule(seed)) for seed in range(12))

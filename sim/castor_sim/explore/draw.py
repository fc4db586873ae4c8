"""A schedule of faults drawn from a seed, steered to the pairs that were drawn least.

A seed gives its schedule alone, without knowing what other seeds gave. Still no pair of faults is
left out: the pairs of kinds, and the phase of the job in which the second one strikes, are numbered
in one fixed shuffled order, and a seed takes the pair of its own number. So of any two pairs, over
any run of seeds, neither is drawn more than once oftener than the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement, product

from castor_sim.explore.schedule import EVERYBODY, FAULTS, PEERS, PHASES, STORE, WISHES, Fault

_SPAN_S = {
    "crash": (4.0, 12.0),
    "agent": (0.2, 9.0),
    "pause": (0.3, 8.0),
    "slow": (1.0, 8.0),
    "net": (0.3, 9.0),
    "loss": (0.5, 6.0),
    "late": (0.3, 3.0),
    "store": (0.3, 10.0),
    "clock": (1.0, 10.0),
    "root": (0.2, 8.0),
    "mount": (0.5, 12.0),
    "full": (1.0, 12.0),
    "stuck": (2.0, 40.0),
    "silent": (2.0, 50.0),
}
_VALUES = {
    "crash": (0.0, 1.0),
    "pause": (0.0, 1.0),
    "leave": (0.0, 1.0),
    "worn": (3.0, 4.0),
    "slow": (3.0, 10.0, 30.0),
    "loss": (0.1, 0.3, 0.6),
    "late": (0.5, 1.5, 3.0, 6.0),
    "clock": (0.3, 0.7, 1.5, 3.0),
    "lease": (-1.0, -1.0, 2.0, 8.0),
    "root": (0.0, 1.0, 2.0, 3.0),
    "net": (0.0, 0.0, 1.0, 2.0),
    "flip": (0.0, 0.0, 1.0),
    "error": (0.0, 1.0, 1.0, 2.0),
    "twin": (0.0, 1.0),
    "stuck": (0.0, 1.0),
    "silent": (0.0, 1.0, 1.0),
    "earlier": (1.0, 3.0, 6.0, 11.0),
    "store": (0.0, 0.0, 1.0, 2.0, 3.0),
    "stop": (0.0, 1.0, 1.0),
    "drain": (0.0, 0.0, 1.0),
}
OF_RANKS = ("trainer", "worn", "leave", "hang", "flip", "error")
"""Faults whose target is a rank."""

_ASKED = 0.25
"""Share of the seeds in which something is asked for beside faults."""

_OFTEN = {"stop": 1, "drain": 3}
_LEAVES_S = (1.0, 20.0)

_TRAINING_S = 7.0  # most of a run without faults lies before it
_OF_STORAGE = {"mount", "full", "silent"}
_MOST_FAULTS = 5
_COUNTS = (2, 5, 3, 2, 1)  # of one fault, of two, ...

Pair = tuple[str, str, str]
"""A kind, another, and the phase in which the other strikes."""


@lru_cache(maxsize=64)
def pairs(kinds: tuple[str, ...]) -> tuple[Pair, ...]:
    """Return all pairs of these kinds in the order in which seeds take them."""
    ordered = sorted(kinds, key=list(FAULTS).index)
    both = product(combinations_with_replacement(ordered, 2), PHASES)
    found = [(one, other, phase) for (one, other), phase in both]
    random.Random("castor explore pairs").shuffle(found)  # noqa: S311 - a simulation, no secret
    return tuple(found)


def draw_faults(seed: int, kinds: Sequence[str], agents: int, ranks: int) -> tuple[Fault, ...]:
    """Draw 1 to 5 faults of the given kinds, in order of time, and what is asked for beside them.

    What is asked for is drawn apart, for some seeds: the others' faults do not depend on it.

    Args:
        seed: same seed, same faults.
        kinds: some of `KINDS`.
        agents: how many agents there are at the start.
        ranks: how many trainers.
    """
    ordered = tuple(kind for kind in FAULTS if kind in kinds)
    drawn = _draw_faults(seed, ordered, agents, ranks) if ordered else ()
    asked = _draw_wishes(seed, [kind for kind in WISHES if kind in kinds], agents, drawn)
    every = (*drawn, *asked)
    return tuple(sorted(every, key=lambda fault: (fault.time_s, fault.kind, fault.target)))


def _draw_wishes(
    seed: int, kinds: Sequence[str], agents: int, faults: Sequence[Fault]
) -> tuple[Fault, ...]:
    draw = random.Random(f"castor explore wishes {seed}")  # noqa: S311 - a simulation, no secret
    if not kinds or (faults and draw.random() >= _ASKED):
        return ()
    found = []
    for kind in draw.choices(kinds, [_OFTEN[kind] for kind in kinds], k=draw.choice((1, 1, 2))):
        time_s = draw.uniform(0.0, _TRAINING_S)
        if faults and draw.random() < 0.5:
            # While it is being done something fails.
            time_s = max(0.0, draw.choice(faults).time_s - draw.uniform(-0.2, 1.5))
        span_s = draw.uniform(*_LEAVES_S) if kind == "drain" else 0.0
        target, value = draw.randrange(agents), draw.choice(_VALUES[kind])
        found.append(Fault(kind, round(time_s, 3), target, span_s=round(span_s, 3), value=value))
    return tuple(found)


def _draw_faults(seed: int, ordered: tuple[str, ...], agents: int, ranks: int) -> tuple[Fault, ...]:
    draw = random.Random(f"castor explore {seed}")  # noqa: S311 - a simulation, no secret
    numbered = pairs(ordered)
    one, other, phase = numbered[seed % len(numbered)]
    count = draw.choices(range(1, len(_COUNTS) + 1), weights=_COUNTS)[0]
    if draw.random() < 0.5:
        one, other = other, one
    chosen = [one, other, *draw.choices(ordered, k=max(0, count - 2))][:count]
    burst_s = draw.uniform(0.0, _TRAINING_S) if draw.random() < 0.5 else None
    target = draw.randrange(max(agents, ranks)) if draw.random() < 0.4 else None
    faults = []
    for place, kind in enumerate(chosen):
        if burst_s is None:
            time_s = draw.uniform(0.0, _TRAINING_S)
        else:
            time_s = burst_s + draw.expovariate(2.0)
        fixed = phase if place == 1 else draw.choice(PHASES) if draw.random() < 0.3 else ""
        if fixed and draw.random() < 0.25:
            time_s = 0.0  # it waits for the first plan
        faults.append(_draw_one(draw, kind, time_s, fixed, (agents, ranks), target))
    if _OF_STORAGE & set(chosen) and "crash" in ordered and draw.random() < 0.5:
        # Nobody reads storage before all that hold a shard in memory are lost.
        lost_s, whose = round(draw.uniform(2.5, _TRAINING_S), 3), draw.randrange(agents)
        faults.append(Fault("crash", lost_s, whose, value=1.0))
    if "agent" in chosen and "crash" in ordered and draw.random() < 0.5:
        # Training goes on without a machine that is back, memory and all, when another one is lost.
        back_s, whose = round(draw.uniform(0.5, 4.0), 3), draw.randrange(agents)
        faults.append(Fault("agent", back_s, whose, span_s=round(draw.uniform(3.5, 13.0), 3)))
        lost = draw.randrange(agents), round(draw.uniform(0.3, 4.0), 3)
        faults.append(Fault("crash", back_s, lost[0], after="load", lag_s=lost[1]))
    if "net" in chosen and draw.random() < 0.5:
        # Cut off from all for longer than a lease lasts, and than it takes to be sure of it.
        cut_s, whom = round(draw.uniform(0.5, _TRAINING_S), 3), draw.randrange(agents)
        faults.append(Fault("net", cut_s, whom, EVERYBODY, span_s=9.0))
    return tuple(
        sorted(faults[-_MOST_FAULTS:], key=lambda fault: (fault.time_s, fault.kind, fault.target))
    )


def _draw_one(
    draw: random.Random,
    kind: str,
    time_s: float,
    after: str,
    sizes: tuple[int, int],
    target: int | None,
) -> Fault:
    agents, ranks = sizes
    low, high = _SPAN_S.get(kind, (0.0, 0.0))
    span_s = draw.uniform(low, high)
    lag_s = draw.choice((0.0, draw.uniform(0.0, 0.2), draw.uniform(0.0, 1.5), draw.uniform(0, 5)))
    lag_s = lag_s if after else 0.0
    aimed, other, value = draw.randrange(agents), 0, 0.0
    if kind in ("crash", "mount", "stuck", "silent"):
        span_s = draw.choice((0.0, span_s))
    elif kind in OF_RANKS:
        aimed, other = draw.randrange(ranks), draw.randrange(4)
    elif kind == "net":
        other = draw.choice((STORE, STORE, PEERS, EVERYBODY, EVERYBODY, draw.randrange(agents)))
    elif kind == "pause":
        other = draw.randrange(2)
    elif kind == "clock":
        other = draw.choice((0, 0, 5, 100))
    elif kind == "root":
        other, after, lag_s = draw.randrange(2), "", draw.choice((0.0, 0.01, 1.0, 1.5, 5.0))
    elif kind == "earlier":
        time_s, after, lag_s, other = 0.0, "", 0.0, draw.randrange(2)
    if kind in _VALUES:
        value = draw.choice(_VALUES[kind])
    if target is not None:
        aimed = target % (ranks if kind in OF_RANKS else agents)
    times = {"time_s": round(time_s, 3), "span_s": round(span_s, 3), "lag_s": round(lag_s, 3)}
    return Fault(kind, target=aimed, other=other, value=value, after=after, **times)

"""Faults as values: drawn up front from a seed, so that a schedule is replayed by writing it down.

Whatever a fault does is decided when it fires, from what then is: "the third live agent", "the root
at its next write". So a schedule from which faults were removed is still a schedule.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from castor_configs.errors import InputError

KINDS = {
    "crash": "a machine dies with its memory; some come back empty",
    "agent": "an agent is killed alone, and started again: memory stays, trainers die",
    "trainer": "a trainer is killed",
    "hang": "a trainer stands still",
    "pause": "a machine, or its agent alone, stands still and wakes, lease expired or not",
    "slow": "a machine does everything many times slower",
    "net": "machines cannot reach each other, or the store, or either",
    "loss": "messages to the store and their answers are lost; watches are cut",
    "late": "requests reach the store long after their sender has given them up",
    "store": "the store is down",
    "lease": "a lease ends early, or late",
    "clock": "a machine's clock jumps, and runs too fast or too slow",
    "flip": "a byte flips in a stored part",
    "root": "the root dies, or stands still, in the middle of writing a plan",
}
"""The kinds of faults, and what each does."""

EVERYBODY = -3
PEERS = -2
STORE = -1
"""Whom a "net" fault cuts its target off from, if not from one machine."""

_SPAN_S = {
    "crash": (4.0, 12.0),
    "agent": (0.2, 6.0),
    "pause": (0.3, 8.0),
    "slow": (1.0, 8.0),
    "net": (0.3, 9.0),
    "loss": (0.5, 6.0),
    "late": (0.3, 3.0),
    "store": (0.3, 10.0),
    "clock": (1.0, 10.0),
    "root": (0.2, 8.0),
}
_VALUES = {
    "pause": (0.0, 1.0),
    "slow": (3.0, 10.0, 30.0),
    "loss": (0.1, 0.3, 0.6),
    "late": (0.5, 1.5, 3.0, 6.0),
    "clock": (0.3, 0.7, 1.5, 3.0),
    "lease": (-1.0, -1.0, 2.0, 8.0),
    "root": (0.0, 1.0, 2.0),
}
_TRAINING_S = 9.0  # most of a run without faults lies before it
_MOST_FAULTS = 5
_AFTER = ("gather", "load")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: one of `KINDS`.
        time_s: when it strikes, or from when on it lies in wait for `after`.
        target: the machine, counted over the live agents by name; for "trainer", "hang" and
            "flip" the rank.
        other: whom "net" cuts it off from: a machine, `STORE`, `PEERS` or `EVERYBODY`; which copy
            "flip" hits; how far a "clock" jumps in seconds; for "pause" and "root" 1 means that
            timers come before messages on waking.
        span_s: how long it lasts; 0: it is over at once, or for good.
        value: how much: slowness, probability of loss, delay of a request, rate of a clock, how
            late a lease ends (negative: at once); for "pause" 1 means the whole machine, for
            "root" 0 to 2 mean agent killed, machine lost, agent paused.
        after: "gather" or "load": it strikes `lag_s` after the next plan in this phase.
        lag_s: see `after`; for "root", how long its last write is under way.
    """

    kind: str
    time_s: float
    target: int = 0
    other: int = 0
    span_s: float = 0.0
    value: float = 0.0
    after: str = ""
    lag_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no driver could carry out.

        Raises:
            ValueError: an unknown kind or phase, or a negative time.
        """
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; there are {', '.join(KINDS)}")
        if self.after not in ("", *_AFTER):
            raise ValueError(f'after is "", "gather" or "load", not {self.after!r}')
        if min(self.time_s, self.span_s, self.lag_s, self.target) < 0:
            raise ValueError(f"time_s, span_s, lag_s and target must not be negative: {self}")

    def end_s(self) -> float:
        """Return when it is surely over, if it strikes at `time_s`."""
        return self.time_s + self.span_s + self.lag_s

    def describe(self) -> str:
        """Return the fault as one line for people."""
        when = f"{self.time_s:6.3f} s"
        if self.after:
            when += f", {self.lag_s:.3f} s after the next {self.after.upper()}"
        said = [f"{key} {value}" for key, value in self._arguments().items()]
        return f"{when}  {self.kind:8s} {', '.join(said)}"

    def _arguments(self) -> dict[str, float]:
        shown = ("target", "other", "span_s", "value", "lag_s")
        return {key: getattr(self, key) for key in shown if getattr(self, key) or key == "target"}


def faults_to_json(faults: Sequence[Fault]) -> str:
    """Return a schedule as one line of JSON, defaults left out."""
    default = {item.name: item.default for item in fields(Fault)}
    records = [
        {key: value for key, value in asdict(fault).items() if value != default[key]}
        for fault in faults
    ]
    return json.dumps(records, separators=(",", ":"))


def faults_from_json(text: str) -> tuple[Fault, ...]:
    """Read what `faults_to_json` wrote.

    Raises:
        InputError: it is no schedule; the message says what is wrong.
    """
    try:
        records = json.loads(text)
    except ValueError as error:
        raise InputError(f"a schedule is a list of faults in JSON: {error}") from error
    known = {item.name for item in fields(Fault)}
    if not isinstance(records, list):
        raise InputError("a schedule is a list of faults in JSON")
    for record in records:
        if not isinstance(record, dict) or set(record) - known:
            raise InputError(f"a fault has the keys {', '.join(sorted(known))}, not {record}")
    try:
        return tuple(Fault(**record) for record in records)
    except (ValueError, TypeError) as error:
        raise InputError(f"not a schedule of faults: {error}") from error


def draw_faults(seed: int, kinds: Sequence[str], agents: int, ranks: int) -> tuple[Fault, ...]:
    """Draw 1 to 5 faults of the given kinds, in order of time.

    Args:
        seed: same seed, same faults.
        kinds: some of `KINDS`.
        agents: how many agents there are at the start.
        ranks: how many trainers.
    """
    draw = random.Random(f"castor explore {seed}")  # noqa: S311 - a simulation, no secret
    ordered = sorted(kinds, key=list(KINDS).index)
    # One fault is the common case of an operator, five the rare one of a bad day.
    count = draw.choices(range(1, _MOST_FAULTS + 1), weights=(3, 4, 3, 2, 1))[0]
    burst_s = draw.uniform(0.0, _TRAINING_S) if draw.random() < 0.35 else None
    faults = []
    for _ in range(count):
        kind = draw.choice(ordered)
        if burst_s is None:
            time_s = draw.uniform(0.0, _TRAINING_S)
        else:
            time_s = burst_s + draw.expovariate(2.0)
        faults.append(_draw_one(draw, kind, time_s, agents, ranks))
    return tuple(sorted(faults, key=lambda fault: (fault.time_s, fault.kind, fault.target)))


def _draw_one(draw: random.Random, kind: str, time_s: float, agents: int, ranks: int) -> Fault:
    low, high = _SPAN_S.get(kind, (0.0, 0.0))
    span_s = draw.uniform(low, high)
    after, lag_s = "", 0.0
    if draw.random() < 0.3:
        after, lag_s = draw.choice(_AFTER), draw.choice((0.0, draw.uniform(0.0, 1.0)))
    target, other, value = draw.randrange(agents), 0, 0.0
    if kind == "crash":
        span_s = draw.choice((0.0, span_s))
    elif kind in ("trainer", "hang", "flip"):
        target, other = draw.randrange(ranks), draw.randrange(4)
    elif kind == "net":
        other = draw.choice((STORE, STORE, PEERS, EVERYBODY, EVERYBODY, draw.randrange(agents)))
    elif kind == "pause":
        other = draw.randrange(2)
    elif kind == "clock":
        other = draw.choice((0, 0, 5, 100))
    elif kind == "root":
        other, after, lag_s = draw.randrange(2), "", draw.choice((0.0, 0.01, 1.0, 5.0))
    if kind in _VALUES:
        value = draw.choice(_VALUES[kind])
    times = {"time_s": round(time_s, 3), "span_s": round(span_s, 3), "lag_s": round(lag_s, 3)}
    return Fault(kind, target=target, other=other, value=value, after=after, **times)

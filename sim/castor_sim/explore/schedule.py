"""Faults as values: drawn up front from a seed, so that a schedule is replayed by writing it down.

Whatever a fault does is decided when it fires, from what then is: "the third live agent", "the root
at its next write". So a schedule from which faults were removed is still a schedule.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from castor_configs.errors import InputError

FAULTS = {
    "crash": "a machine dies with its memory, or all that hold its shard do; some come back empty",
    "agent": "an agent is killed alone, and started again: memory stays, trainers die",
    "trainer": "a trainer is killed",
    "worn": "a trainer is killed in three generations in a row",
    "leave": "a trainer ends with code 0 while the others train",
    "twin": "a second agent of an agent's name starts, on its machine or on another one",
    "earlier": "an earlier run of the job's name has left its memory on the machines",
    "stuck": "a machine's next stop of trainers, or reading of its memory, does not end",
    "silent": "persistent storage does not answer a machine, or any",
    "unfit": "a machine has no memory for the parts of a place that it comes to fill",
    "hang": "a trainer stands still",
    "pause": "a machine, or its agent alone, stands still and wakes, lease expired or not",
    "slow": "a machine does everything many times slower",
    "net": "machines cannot reach each other, or the store, or either; in both directions or one",
    "loss": "messages to the store and their answers are lost; watches are cut",
    "late": "requests reach the store long after their sender has given them up",
    "store": "the store is down, loses its data, or has no space",
    "lease": "a lease ends early, or late",
    "clock": "a machine's clock jumps, and runs too fast or too slow",
    "compact": "the store forgets its history, and a machine's watches are cut",
    "flip": "a byte flips in a stored part, in memory or in persistent storage",
    "mount": "a machine sees nothing of persistent storage",
    "full": "persistent storage takes nothing more",
    "error": "the script fails in an iteration to come, in every generation",
    "root": "the root dies, stands still, or gives up, in the middle of writing a plan",
}
"""The kinds of faults, and what each does."""

WISHES = {
    "stop": "the job's user stops it, at once or at a checkpoint in persistent storage",
    "drain": "a machine is to be drained, as its user or its own agent asks",
}
"""What is asked for beside them."""

KINDS = FAULTS | WISHES

EVERYBODY = -3
PEERS = -2
STORE = -1
"""Whom a "net" fault cuts its target off from, if not from one machine."""

RESTORED, NO_SPACE = 2, 3
"""What a "store" fault of this value does."""

PHASES = ("", "gather", "load")
"""When a fault strikes: at its time, or after the next plan in this phase."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: one of `KINDS`.
        time_s: when it strikes, or from when on it lies in wait for `after`.
        target: the machine, counted over the live agents by name; for "trainer", "worn", "leave",
            "hang", "flip" and "error" the rank.
        other: whom "net" cuts it off from: a machine, `STORE`, `PEERS` or `EVERYBODY`; which copy
            "flip" hits; how far a "clock" jumps in seconds; for "pause" and "root" 1 means that
            timers come before messages on waking; for "error" an odd number means after the
            update, for "earlier" that its target holds nothing.
        span_s: how long it lasts; 0: it is over at once, or for good.
        value: how much: slowness, probability of loss, delay of a request, rate of a clock, how
            late a lease ends (negative: at once); how many iterations ahead an "error" lies; the
            iteration that an "earlier" run had come to; for
            "pause" 1 means the whole machine, for "crash" all machines of its shard's row, for
            "net" only what it sends (1) or only what it gets (2), for "flip" persistent storage,
            for "twin" another machine,
            for "stuck" reading memory, not stopping, for "silent" every machine;
            for "leave" 1 means that it said before that it had finished; for "worn" how often;
            for "stop" 1 means at a checkpoint; for "drain" 1 means that the agent asks, and leaves
            after `span_s` all the same;
            for "store" 0 to 3 mean down, back without its data, back with those that it had when
            the job began, without space; for "root" 0 to 3 mean agent killed, machine lost, agent
            paused, write late alone.
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
        if self.after not in PHASES:
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

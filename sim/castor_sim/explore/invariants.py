"""What must hold (docs/invariants.md); a violation names one of these."""

from __future__ import annotations

INVARIANTS = {
    1: "only complete shards are offered for recovery, and a plan takes what was offered",
    2: "what is being sent is never written meanwhile",
    3: "a recovered run continues with exactly the state that it had",
    4: "fewer than m machines lost at once cost no more than a period and the iteration in flight",
    5: "every rank loads the same iteration, and no older one than storage has",
    6: "only the root of the newest term writes, and the plan never goes back",
    7: "a corrupt part is never loaded",
    8: "at most one set of trainers of a machine's place makes progress",
    9: "a machine whose place was given away makes no progress in the newer generation",
    10: "an outage of the store, or a second agent of a name, alone stops nothing",
    11: "once faults stop, the job reaches its last iteration, or the one where its script fails",
    12: "no agent believes in its lease for longer than the store does",
    13: "a generation loads only after every machine has stopped its trainers and read its memory",
    14: "no plan rests on memory of another run, or of a generation that was given up",
    15: "what can be recovered is recovered within a bound",
    16: "no event makes an agent raise",
    17: "a good replica is given up only for a newer one in its place",
    18: "who is named for a failure is who it struck; nobody is only where nobody could see it",
    19: "nobody takes the name of an agent that lives, and whose lease does",
    20: "who has no place in a generation that trains gives its memory back",
    21: "workers and roots go only the ways of their tables, and what they know fits together",
    23: "what a user asks for stands until it is done, whoever is root, and is done in time",
    24: "nobody trains beyond where it holds: a drain alone has nothing trained twice",
}
"""What must hold, by number."""


class Violation(Exception):  # noqa: N818 - what is violated is no error of this program
    """An invariant does not hold.

    Attributes:
        invariant: its number in `INVARIANTS`.
        found: what was seen.
    """

    def __init__(self, invariant: int, found: str) -> None:
        super().__init__(f"invariant {invariant} ({INVARIANTS[invariant]}): {found}")
        self.invariant = invariant
        self.found = found

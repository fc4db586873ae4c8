"""Who reaches whom, in which direction, and what gets lost on the way to the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet

STORE = "store"
"""The store's name among the machines'."""


class Network:
    """Cuts, losses and delays that are in force; faults put them in and take them out."""

    __slots__ = ("_cuts", "_late_s", "_loss")

    def __init__(self) -> None:
        self._cuts: Counter[tuple[str, str]] = Counter()
        self._loss: dict[str, float] = {}
        self._late_s: dict[str, float] = {}

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing through in this direction; cuts add up."""
        self._cuts[sender, receiver] += 1

    def mend(self, sender: str, receiver: str) -> None:
        """Take one cut back."""
        self._cuts[sender, receiver] -= 1
        if self._cuts[sender, receiver] <= 0:
            del self._cuts[sender, receiver]

    def cuts_any(self, names: AbstractSet[str]) -> bool:
        """Whether one of these is cut off from another of them."""
        return any(sender in names and receiver in names for sender, receiver in self._cuts)

    def reaches(self, sender: str, receiver: str) -> bool:
        """Whether what one sends comes to the other."""
        return not self._cuts or sender == receiver or self._cuts[sender, receiver] <= 0

    def connects(self, one: str, other: str) -> bool:
        """Whether both reach each other: a request comes there and its answer back."""
        return self.reaches(one, other) and self.reaches(other, one)

    def set_loss(self, name: str, probability: float) -> None:
        """Lose each message between this machine and the store with this probability."""
        self._loss[name] = probability

    def loss(self, name: str) -> float:
        """Return that probability."""
        return self._loss.get(name, 0.0)

    def set_late(self, name: str, delay_s: float) -> None:
        """Delay this machine's requests to the store."""
        self._late_s[name] = delay_s

    def late_s(self, name: str) -> float:
        """Return that delay."""
        return self._late_s.get(name, 0.0)

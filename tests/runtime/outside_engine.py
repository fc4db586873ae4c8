"""An engine that Castor does not know; its adapter is the recipe of CONTRIBUTING.md."""

from __future__ import annotations

import torch


class Ledger:
    """Adds up what it is given; half of what matters is no tensor."""

    def __init__(self, size: int) -> None:
        self.sums = torch.zeros(size)
        self.entries: list[int] = []

    def train(self, value: int) -> None:
        self.sums.mul_(1.0001).add_(value)
        self.entries.append(value)

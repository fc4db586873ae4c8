"""Which rank's loss is not finite while the others' are: what to look at first.

An update spreads it: where one rank's loss or gradients are no numbers, after it no rank's
parameters are. So only the first iteration tells who it was; in that the others are still finite.
"""

from __future__ import annotations

from collections.abc import Sequence


class OddLoss:
    """Says of one rank of a generation that it is the odd one, once.

    Args:
        rank: which.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._were_finite = True

    def observe(self, odd: Sequence[int]) -> bool:
        """Take some iterations in; return whether this rank is to be named.

        Fewer than half of the ranks may be: an iteration in which most are not finite is a matter
        of the script, the data or the learning rate. Told again only once all were finite.

        Args:
            odd: of each rank, the first of them whose loss was infinite or no number; 0: none was.
        """
        were_finite, self._were_finite = self._were_finite, not any(odd)
        first = min(filter(None, odd), default=0)
        return were_finite and 0 < odd[self._rank] == first and 2 * odd.count(first) < len(odd)

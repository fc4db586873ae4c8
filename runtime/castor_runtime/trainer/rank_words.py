"""What every rank tells all others of itself with each checkpoint, in the agreement that ends it.

That agreement is a minimum over all ranks, of words of 8 bytes. Words in front are the same on all;
behind them every rank has some of its own, where all others say the largest number: so what each
says reaches all, and costs no message more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from castor_runtime.trainer.losses import Loss
from castor_runtime.trainer.own_time import Pace

_LARGEST: Final = (1 << 63) - 1
_FRONT: Final = 4
_EACH: Final = 3
_US_PER_S: Final = 1e6


@dataclass(frozen=True, slots=True)
class RankWord:
    """What one rank says of itself.

    Attributes:
        seconds: of the iterations since its last word, all together.
        own_s: of that, what it took itself.
        odd: the first of them whose loss was infinite, or no number; 0: none was.
    """

    seconds: float
    own_s: float
    odd: int


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks say of one iteration.

    Attributes:
        iteration: the lowest that any rank speaks of.
        drifted: some rank's idle spans no longer fit the schedule.
        torn: some rank's state had changed while it was copied.
        hold: some rank was asked to hold.
    """

    iteration: int
    drifted: bool
    torn: bool
    hold: bool


def said_by(pace: Pace, losses: Sequence[tuple[int, Loss]]) -> RankWord:
    """Return a rank's word on iterations that have ended; waits until their losses are known.

    Args:
        pace: theirs.
        losses: theirs, each behind its iteration.
    """
    numbers = ((iteration, loss.number()) for iteration, loss in losses)
    odd = (i for i, number in numbers if number is not None and not math.isfinite(number))
    return RankWord(pace.seconds, pace.own_s, next(odd, 0))


def said(agreed: Agreed, word: RankWord, rank: int, world: int) -> torch.Tensor:
    """Return the words of one rank.

    Args:
        agreed: what it says of itself, that is to be true of all or of any.
        word: the rest.
        rank: whose.
        world: how many ranks there are.
    """
    words = torch.full((_FRONT + _EACH * world,), _LARGEST, dtype=torch.int64)
    # MIN: whom a flag holds for says -1.
    flags = [-int(flag) for flag in (agreed.drifted, agreed.torn, agreed.hold)]
    words[:_FRONT] = torch.tensor([agreed.iteration, *flags])
    at = _FRONT + _EACH * rank
    own = [round(word.seconds * _US_PER_S), round(word.own_s * _US_PER_S), word.odd]
    words[at : at + _EACH] = torch.tensor(own)
    return words


def heard(words: torch.Tensor) -> tuple[Agreed, tuple[RankWord, ...]]:
    """Return what the minimum over all ranks' words says: of all, and of each."""
    iteration, drifted, torn, hold = words[:_FRONT].tolist()
    each = words[_FRONT:].reshape(-1, _EACH).tolist()
    ranks = (RankWord(us / _US_PER_S, own_us / _US_PER_S, odd) for us, own_us, odd in each)
    return Agreed(iteration, bool(drifted), bool(torn), bool(hold)), tuple(ranks)

"""An own replica of one buffer is turned to a newer iteration on all of a machine's ranks, or none.

From when a rank begins to write over its only own buffer until it is whole, that part's older
iteration is gone here, and its newer one lies in live state and with the peers. If all peers that
hold it are lost in between, the rank has to finish before its process ends; and the machine's other
ranks, whose peers are the same ones, have to do so as well, though their agreement may have
failed: no iteration would be left that all their parts share. So

- a rank says which iteration it turns to (`turned`) before it writes the first byte, and one that
  waits for the same agreement takes that for the agreement;
- an agent that is about to kill its trainers says so first (`last_word`), sees which turns were
  begun, says up to which iteration a turn may be made, and waits for those.

Each writes its own word before it reads the other's, so that at least one of them sees both; the
agent pauses in between, for what a processor has stored is seen elsewhere much sooner than that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from castor_runtime.arena.control import RankControl

TURN_S = 10.0
"""Most that an agent waits for turns: ten times what one takes where 10 GB are copied at 10 GB/s. A
trainer that the kernel holds does not make its turn, and counts as lost with what it held."""

_SEEN_S = 0.01
_POLL_S = 0.002

_ASKED = 1
_SAID = 2  # and the iteration up to which turns may be made


class OwnTurn:
    """A rank's side.

    Args:
        ranks: the counters of the machine's trainers.
        local_rank: which are its own.
    """

    def __init__(self, ranks: Sequence[RankControl], local_rank: int) -> None:
        self._ranks = ranks
        self._own = ranks[local_rank]

    def is_begun(self, iteration: int) -> bool:
        """Whether a rank of this machine turns to `iteration`, or may: it is agreed on."""
        most = self._own.last_word - _SAID
        return most >= iteration or any(counters.turned >= iteration for counters in self._ranks)

    def begin(self, iteration: int, *, gives_up: Callable[[], bool]) -> bool:
        """Say that this rank turns to `iteration`; False if it must not: it is about to be killed.

        Args:
            iteration: which is agreed on.
            gives_up: whether not to wait any more for the agent's last word.
        """
        self._own.turned = iteration
        while self._own.last_word == _ASKED and not gives_up():
            time.sleep(_POLL_S)
        word = self._own.last_word
        return word == 0 or word - _SAID >= iteration

    def is_refused(self, iteration: int) -> bool:
        """Whether the agent has said that no rank of this machine turns to `iteration`."""
        return _SAID <= self._own.last_word < _SAID + iteration


async def let_turns_end(
    ranks: Sequence[RankControl],
    is_whole: Callable[[int, int], bool],
    has_ended: Callable[[int], bool],
    limit_s: float = TURN_S,
) -> None:
    """Say the last word to a machine's trainers, and wait for the turns that they have begun.

    Args:
        ranks: their counters.
        is_whole: whether the own replica of a local rank holds an iteration.
        has_ended: whether the process of a local rank is gone.
        limit_s: the most to wait.
    """
    for counters in ranks:
        counters.last_word = _ASKED
    await asyncio.sleep(_SEEN_S)
    newest = max(counters.turned for counters in ranks)
    for counters in ranks:
        counters.last_word = _SAID + newest
    if newest == 0:
        return
    end_s = time.monotonic() + limit_s
    waited = [local for local in range(len(ranks)) if not is_whole(local, newest)]
    while waited and time.monotonic() < end_s:
        await asyncio.sleep(_POLL_S)
        waited = [one for one in waited if not (has_ended(one) or is_whole(one, newest))]

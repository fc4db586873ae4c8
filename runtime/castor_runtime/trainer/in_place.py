"""What it takes for a trainer to go on in place where a rank is lost: see docs/recovery.md.

Its process groups are connected anew, and its engine forgets the iteration that was interrupted;
the state is then loaded as after a restart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final

import torch.distributed as dist

from castor_runtime.state.protocol import Interruptible, Retraceable, State
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.agreements import agree_on_trace, all_can
from castor_runtime.trainer.joining import training_timeout_s
from castor_runtime.trainer.meeting import environment, meet
from castor_runtime.trainer.swap.errors import CannotSwapError, LostRankError
from castor_runtime.trainer.swap.groups import installed
from castor_runtime.trainer.tcp_streams import StreamError


class InPlace:
    """The groups and the engine of this process, as far as they outlive a generation.

    Make it when the engine is new, before it trains.

    Args:
        state: of the engine.

    Raises:
        CannotSwapError: this process has to be restarted instead; says why.
    """

    def __init__(self, state: State) -> None:
        groups = installed()
        if groups is None:
            raise CannotSwapError(
                "the script that was started names `.iteration(` in none of its own files, and so "
                "has ordinary process groups"
            )
        if groups.refusal:
            raise CannotSwapError(groups.refusal)
        if not isinstance(state, Interruptible):
            raise CannotSwapError(
                f"{type(state).__name__} has no `interrupted_iteration`, by which its engine "
                "forgets one"
            )
        self._groups: Final = groups
        self._interrupted: Final = state.interrupted_iteration()
        self._timeout: Final = timedelta(seconds=training_timeout_s())

    def end(self, generation: int) -> None:
        """End that generation's collectives, whoever waits for them; from any thread."""
        self._groups.end_all(generation)

    def leave(self) -> None:
        """Forget the iteration that was interrupted; the generation's collectives have ended."""
        self._groups.let_go_all()
        self._interrupted.throw_away()

    def connect(self, settings: TrainerSettings, place: str, gives_up: Callable[[], bool]) -> None:
        """Meet the other ranks of a generation.

        Args:
            settings: of the trainer in it.
            place: where they meet.
            gives_up: says that the generation is over.

        Raises:
            LostRankError: the generation is over, or a rank does not come.
            CannotSwapError: this process has made other groups than it would need.
        """
        os.environ.update(environment(place))
        try:
            store = meet(place, settings.rank, settings.world_size, self._timeout, gives_up)
        except RuntimeError as error:
            raise LostRankError(f"the first rank was not met: {error}") from error
        self._groups.connect_all(store, settings.generation, settings.rank)

    def retrace(self, control: dist.ProcessGroup) -> None:
        """Have the engine go by the order of its work that survivors know; all ranks call it.

        Args:
            control: a gloo group of all ranks.
        """
        engine = self._interrupted
        if not isinstance(engine, Retraceable):
            return
        trace = agree_on_trace(engine.trace(), control)
        if trace and not all_can(engine.retrace(trace), control):
            engine.retrace(b"")


def tells_of_lost_rank(error: BaseException) -> bool:
    """Whether an error comes of a collective or a transfer that a peer was to take part in."""
    return any(isinstance(one, LostRankError | StreamError) for one in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__

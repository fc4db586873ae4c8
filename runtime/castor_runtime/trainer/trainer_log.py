"""What a trainer tells its agent of training and checkpoints: events for the log, and counters."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from castor_policy.interleaving import EAGER
from castor_records.events.training import (
    Busy,
    CheckpointCompleted,
    CheckpointLeftOut,
    IterationEnded,
    Warned,
)
from castor_runtime.arena import RankControl
from castor_runtime.trainer.agent_link import AgentLink, TrainerSettings
from castor_runtime.trainer.agreements import Learned
from castor_runtime.trainer.checkpoint_steps import Completed, Scheduled
from castor_runtime.trainer.idle_spans import NetworkUse
from castor_runtime.trainer.link_probe import LinkMeasurement
from castor_runtime.trainer.losses import Loss, read_loss
from castor_runtime.trainer.rank_comparison import RankComparison
from castor_runtime.trainer.span_profile import SpanProfile

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class _Ended:
    """An iteration that is told once its loss is known."""

    iteration: int
    loss: Loss
    seconds: float
    own_s: float
    use: NetworkUse | None


@dataclass(frozen=True, slots=True)
class NewestCheckpoint:
    """The newest that is complete on every rank.

    Attributes:
        iteration: of it.
        seconds: from its hand-over to that.
        stall_s: in which training waited for it.
    """

    iteration: int
    seconds: float
    stall_s: float


class TrainerLog:
    """Tells of one trainer; the replicator's thread tells of checkpoints.

    Attributes:
        newest: what was completed last in this generation; None: nothing yet.

    Args:
        settings: of the trainer.
        link: to its agent.
        counters: of the trainer.
    """

    def __init__(self, settings: TrainerSettings, link: AgentLink, counters: RankControl) -> None:
        self._settings = settings
        self._who = settings.who
        self._link = link
        self._counters = counters
        self._blocked_s = 0.0
        self._waits: Callable[[], float] | None = None
        self.newest: NewestCheckpoint | None = None
        self._telling = threading.Lock()
        self._untold: deque[_Ended] = deque()
        self._comparison = RankComparison(settings, link.event)

    def follow(self, settings: TrainerSettings) -> None:
        """Tell of another generation; what was under way in the one before is forgotten."""
        self._settings, self._who = settings, settings.who
        self._blocked_s, self._waits = 0.0, None
        self.newest = None
        self._comparison = RankComparison(settings, self._link.event)
        with self._telling:
            self._untold.clear()

    # ---- training -------------------------------------------------------------------------------

    def iteration_ended(
        self, iteration: int, loss: Any, seconds: float, own_s: float, use: NetworkUse | None
    ) -> Loss:
        """Tell of an iteration once its loss is known; on the CPU that is now. Return the loss.

        Nothing waits for that. A checkpoint holds what the iteration left: it is told after it.

        Args:
            iteration: which.
            loss: as the script gave it.
            seconds: that it took.
            own_s: of that, what this rank took itself.
            use: of its idle spans, where they are watched.
        """
        self._counters.iteration = iteration
        ended = _Ended(iteration, read_loss(loss), seconds, own_s, use)
        with self._telling:
            self._untold.append(ended)
            self._tell(-1)
        return ended.loss

    def tell_iterations(self, up_to: int) -> None:
        """Tell of all iterations up to this one; waits where a loss is not known."""
        with self._telling:
            self._tell(up_to)

    def _tell(self, up_to: int) -> None:
        while self._untold and (
            self._untold[0].iteration <= up_to or self._untold[0].loss.is_known()
        ):
            ended = self._untold.popleft()
            use = ended.use
            self._link.event(
                IterationEnded(
                    **self._who,
                    iteration=ended.iteration,
                    loss=ended.loss.number(),
                    seconds=ended.seconds,
                    idle_s=None if use is None else use.idle_ns / 1e9,
                    train_busy_s=None if use is None else use.train_busy_ns / 1e9,
                    own_s=ended.own_s,
                )
            )

    def busy(self, iteration: int, what: str, seconds: float) -> None:
        """Tell of a time in which the trainer had reason to be silent."""
        self._link.event(Busy(**self._who, iteration=iteration, what=what, seconds=seconds))

    def warn(self, message: str) -> None:
        """Have whoever started the job see it: on `castor train`'s screen and in result.json."""
        self._link.event(Warned(**self._who, message=message))

    def profiled(self, iteration: int, profile: SpanProfile) -> None:
        """Tell of the idle spans of the iterations up to this one."""
        self._link.event(profile.to_event(**self._who, iteration=iteration))

    def learned(self, learned: Learned) -> None:
        """Have the agent keep what is known of the network for who is started later."""
        self._link.send("learned", learned=learned.to_json())

    def measured(self, measurement: LinkMeasurement) -> None:
        """Tell of the hop that checkpoints take."""
        self._link.event(measurement.to_event(**self._who))

    # ---- how long training waits ----------------------------------------------------------------

    @contextmanager
    def blocked(self, since_s: Callable[[], float]) -> Iterator[None]:
        """Count the time within as one in which training waits for its checkpoint.

        Args:
            since_s: returns since when what trains has had nothing to do, in seconds of
                CLOCK_MONOTONIC: a GPU may still be busy where its host waits.
        """
        began_s = time.monotonic()

        def waits() -> float:
            return max(0.0, time.monotonic() - max(began_s, since_s()))

        self._waits = waits
        yield
        self._waits = None
        self._blocked_s += waits()

    def handed_over(self) -> None:
        """Count anew, for the next checkpoint."""
        self._blocked_s = 0.0

    def add_blocked(self, seconds: float) -> None:
        """Count a time in which training waited."""
        self._blocked_s += seconds

    # ---- checkpoints ----------------------------------------------------------------------------

    def scheduled(self, scheduled: Scheduled) -> None:
        """Tell of a schedule that was made."""
        self._link.event(scheduled.to_event(**self._who))
        traffic = scheduled.traffic
        if traffic.link is not None:
            self.learned(Learned(traffic.link, traffic.copy_link, tuple(traffic.spans_ns)))

    def completed(self, completed: Completed) -> None:
        """Tell of an iteration that is complete on every rank."""
        self.tell_iterations(completed.iteration)
        self._counters.agreed = completed.iteration
        waits = self._waits  # the update waits for this very moment, if it waits
        waited_s = 0.0 if waits is None else waits()
        stall_s = self._blocked_s + waited_s
        self.newest = NewestCheckpoint(completed.iteration, completed.seconds, stall_s)
        traffic = completed.traffic
        self._link.event(
            CheckpointCompleted(
                **self._who,
                iteration=completed.iteration,
                seconds=completed.seconds,
                blocked_s=stall_s,
                sent_bytes=completed.sent_bytes,
                scheme=EAGER if traffic.link is None else traffic.scheme,
                spans_ns=tuple(traffic.spans_ns),
                captured_s=completed.captured_s,
                network_s=completed.network_s,
                sent_s=completed.sent_s,
                commit_s=completed.commit_s,
            )
        )
        self._comparison.take(completed)

    def left_out(self, iteration: int, torn: tuple[str, ...]) -> None:
        """Tell of an iteration that has no checkpoint, and of the sections that changed here."""
        self.tell_iterations(iteration)
        self._link.event(CheckpointLeftOut(**self._who, iteration=iteration, changed=torn))
        if torn:
            more = f" and {len(torn) - _SHOWN} more" if len(torn) > _SHOWN else ""
            said = (
                f"{', '.join(torn[:_SHOWN])}{more} changed between Checkpointer.step() and the "
                f"next update, while iteration {iteration} was copied. That checkpoint is left "
                "out; from now on they are copied before step() returns."
            )
            self.warn(said)
            sys.stderr.write(f"castor: rank {self._settings.rank}: {said}\n")

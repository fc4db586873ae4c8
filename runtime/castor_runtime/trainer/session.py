"""One trainer's session with its agent: layout, loading, iteration after iteration, the end.

What `Checkpointer` does inside Castor; outside it there is no session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from castor_policy.interleaving import NONE
from castor_policy.period import is_due
from castor_runtime.arena import TrainerPhase
from castor_runtime.state.meta import encode
from castor_runtime.trainer.checkpoint_steps import Capture
from castor_runtime.trainer.final_state import write_state
from castor_runtime.trainer.meta_room import MetaRooms
from castor_runtime.trainer.replication import Replicator
from castor_runtime.trainer.session_generations import SessionGenerations
from castor_runtime.trainer.span_profile import SpanProfile
from castor_runtime.trainer.trainer_generation import TrainerGeneration

_FOR_EVER_NS: Final = (1 << 63) - 1


class TrainerSession(SessionGenerations):
    """A trainer's part in the job; see `SessionGenerations` for what it is made with."""

    # ---- training --------------------------------------------------------------------------------

    def step(self, loss: Any, meta: Callable[[], dict[str, Any]]) -> bool:
        """See `Checkpointer.step`; return whether an iteration has ended: then `meta` is called."""
        iteration = self._state.iteration()
        if not self._resumed:
            raise ValueError("call Checkpointer.resume() before the first iteration")
        if iteration == self._last:
            return False  # within gradient accumulation
        if iteration < self._last:
            raise ValueError(
                f"the engine counted {self._last} iterations, and now {iteration}: load a "
                "DeepSpeed checkpoint before Checkpointer.resume(), not after it"
            )
        began = time.monotonic()
        here = self._within()
        self._last = iteration
        measured = here.idle.end_iteration()
        use = measured[1] if measured is not None and here.watches_spans else None
        seconds = began - self._ended_at
        own_s = self._own_time.end_iteration(seconds)
        known = self.log.iteration_ended(iteration, loss, seconds, own_s, use)
        self._ended_at = began
        if measured is not None:
            self._profiler.add(measured[0])
        if here.replicator is None:
            self._due_profile(here, drift=False)
            return True
        self._losses.append((iteration, known))
        if is_due(iteration, self._settings.traffic.checkpoint_every):
            self._checkpoint(here, here.replicator, meta, began)
        return True

    def _checkpoint(
        self,
        here: TrainerGeneration,
        replicator: Replicator,
        meta: Callable[[], dict[str, Any]],
        began: float,
    ) -> None:
        self._taken = self._last
        here.let_all_go()
        self._wait(replicator.wait_complete)
        # Where updates do not wait for replication, all ranks know of it here, and not before.
        self._holds_next = replicator.holds
        encoded = encode(meta())
        # Rounds that are launched in one order wait on all ranks for the first few, or on none.
        settles = here.device.launches_in_order and self._moments.is_settling
        with here.device.moment():
            moment = self._moments.take(self._state.live())
        profile, reason = self._due_profile(here, drift=replicator.drifted)
        drifted = here.watches_spans and self._profiler.has_drifted()
        # What is measured before there is a schedule must not be disturbed (Gemini sec. 5.4).
        blocks = self._settings.traffic.scheme == "blocking" or (
            here.watches_spans and self._profiler.is_measuring
        )
        here.idle.close_gate()
        here.launches.expect()
        self.log.handed_over()
        pace, losses = self._own_time.take(), tuple(self._losses)
        self._losses.clear()
        replicator.start(
            Capture(self._last, encoded, moment, pace, losses, profile, reason, drifted)
        )
        self._wait(here.launches.handed_over)
        if blocks or settles or moment.settling:
            here.gate.open()
            here.launches.let_all_go()
            self._wait(replicator.wait_complete if blocks else replicator.wait_state_free)
        self.log.add_blocked(time.monotonic() - began)

    @contextmanager
    def busy(self, what: str, limit_s: float) -> Iterator[None]:
        """See `Checkpointer.busy`."""
        began = time.monotonic()
        with self._busy(limit_s), self._own_time.others():
            yield
        self.log.busy(self._last, what, time.monotonic() - began)

    def before_update(self) -> None:
        """See `Checkpointer.before_update`."""
        here = self._within()
        here.device.note_update()
        here.idle.before_update()
        replicator = here.replicator
        if replicator is None:
            return
        with self.log.blocked(here.idle.stands_since_s):
            here.let_all_go()
            only_captured = self._update_after == "capture" and not self._holds_next
            self._wait(replicator.wait_state_free if only_captured else replicator.wait_complete)
            # An iteration that had to be left out is no place to hold at: it would be lost.
            if replicator.holds and not only_captured and replicator.agreed == self._taken:
                self._hold(replicator)

    def _wait(self, wait: Callable[[], None]) -> None:
        """Wait for the checkpoint, and so for others."""
        with self._own_time.others():
            self._within().waiting(wait)

    def _hold(self, replicator: Replicator) -> NoReturn:
        """Go no further: every rank is here, and all that was trained is complete everywhere.

        The agent ends this process, and may need it until then: nothing is taken down.
        """
        self._counters.busy_until_ns = _FOR_EVER_NS
        self._link.send("held", iteration=replicator.agreed)
        self._link.wait_for_end()

    def finish(self, meta: Callable[[], dict[str, Any]]) -> None:
        """See `Checkpointer.finish`; `meta` is called if the last iteration has no checkpoint."""
        here = self._within()
        if self._settings.traffic.scheme == NONE:
            self._keep_final_state(here, meta)
        replicator = here.replicator
        if replicator is not None:
            here.let_all_go()
            replicator.wait_complete()
            # Nothing else would stand for the end, where the last one is not due or was left out.
            if self._taken != self._last or replicator.left_out == self._last:
                self._checkpoint(here, replicator, meta, time.monotonic())
                here.let_all_go()
                replicator.wait_complete()
        here.finish()
        self.log.tell_iterations(self._last)
        self._counters.phase = TrainerPhase.FINISHED
        self._heartbeat.stop()

    def _keep_final_state(
        self, here: TrainerGeneration, meta: Callable[[], dict[str, Any]]
    ) -> None:
        """Without checkpoints too, agents tell what training came to by what lies in memory."""
        final = self._profiler.final()
        if final is not None:
            self.log.profiled(self._last, final)
        if self._own is None or self._last == 0:
            return
        MetaRooms([self._own], self._ask_for_room, self._timeout_s)
        writing = self._own.begin(self._last, self._settings.generation, None)
        with here.device.moment():
            write_state(writing, self._state.sections, self._state.live, meta)

    def _due_profile(
        self, here: TrainerGeneration, *, drift: bool
    ) -> tuple[SpanProfile | None, str]:
        due = self._profiler.due(drift=drift) if here.watches_spans else None
        if due is None:
            return None, ""
        profile, _ = due
        self.log.profiled(self._last, profile)
        return due

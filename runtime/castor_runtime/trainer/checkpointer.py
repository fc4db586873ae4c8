"""The public face of the runtime: what a training script calls.

    checkpointer = Checkpointer(engine, state={"sampler": sampler})
    start = checkpointer.resume()
    for iteration in range(start, iterations):
        loss = engine(sampler.next_batch())
        engine.backward(loss)
        engine.step()
        checkpointer.step(loss=loss)

A script that goes on without a restart where another rank is lost writes its loop so:

    while checkpointer.done < iterations:
        with checkpointer.iteration():
            loss = engine(sampler.next_batch())
            engine.backward(loss)
            engine.step()

Every iteration (or one of each N: `castor train --checkpoint-every N`) is then in the memory of m
machines before the next one ends. Outside Castor (the script was not started by `castor train` or
an agent) it does nothing but say so once.
"""

from __future__ import annotations

import atexit
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

from castor_runtime.state.meta import encode
from castor_runtime.state.protocol import State, Stateful
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.busy import BUSY_LIMIT_S
from castor_runtime.trainer.engine_monitor import EngineMonitor
from castor_runtime.trainer.engines import state_of
from castor_runtime.trainer.in_place import InPlace
from castor_runtime.trainer.joining import training_timeout_s
from castor_runtime.trainer.random_state import capture_random_state
from castor_runtime.trainer.session import TrainerSession
from castor_runtime.trainer.swap.errors import CannotSwapError
from castor_runtime.trainer.unheld_state import refuse_foreign_state

_META_SLACK_BYTES = 64 << 10
_PAGE_BYTES = 4096


class Checkpointer:
    """Checkpoints the iterations of this rank into memory, and resumes from there.

    Construct it on every rank, once, after `deepspeed.initialize`; it makes process groups.

    Args:
        engine: a DeepSpeed engine with ZeRO stage 3, a `TensorState`, or one that an adapter stands
            for (`castor_runtime.trainer.engines.ENGINES`).
        state: the user's own state by name, made whole again by `resume`.
        meta_bytes: a hint, room for the user's and the small states together at the start; None:
            twice what they take now and 64 KiB. Where they grow, room is made in time.
        timeout_s: how long a transfer waits for a peer that is silent; None: as long as training's
            own collectives do (`init_process_group(timeout=)`, 600 s from DeepSpeed), so that
            whatever holds a rank up there is not an error here first.
        update_after: what the optimizer's update waits for. "replication": until every replica has
            arrived (invariant 2), so that a failure costs no more than the iteration in flight.
            "capture": until the state is copied, as other checkpointers have it; where a transfer
            takes longer than an iteration, one more can be lost.

    Raises:
        ValueError: the engine's or the user's state cannot be checkpointed; says why.
        AgentLostError: the agent is gone.
    """

    def __init__(
        self,
        engine: Any,
        state: Mapping[str, Stateful] | None = None,
        *,
        meta_bytes: int | None = None,
        timeout_s: float | None = None,
        update_after: Literal["replication", "capture"] = "replication",
    ) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s is above 0, or None, not {timeout_s}")
        if update_after not in ("replication", "capture"):
            raise ValueError(f'update_after is "replication" or "capture", not {update_after!r}')
        self._state = state_of(engine)
        self._user = dict(sorted((state or {}).items()))
        refuse_foreign_state(self._user)
        settings = TrainerSettings.from_environment()
        self._session: TrainerSession | None = None
        self._resumed = self._stepped = False
        if settings is None:
            warnings.warn(
                "not started by castor: nothing is checkpointed; use `castor train SCRIPT`",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        _claim_process()
        self._watch: Callable[[], bool] | None = None
        needed = len(encode(self._meta()))
        capacity = 2 * needed + _META_SLACK_BYTES if meta_bytes is None else meta_bytes
        capacity = -(-capacity // _PAGE_BYTES) * _PAGE_BYTES
        waits_s = training_timeout_s() if timeout_s is None else timeout_s
        self._refusal, in_place = _in_place(self._state)
        self._session = TrainerSession(
            settings, self._state, capacity, waits_s, update_after, in_place=in_place
        )
        self._monitor = EngineMonitor(engine, settings.generation, self._session.log.warn)
        if self._state.optimizer is not None:
            self._state.optimizer.register_step_pre_hook(lambda *_: self.before_update())
        _finish_at_exit(self)

    def resume(self) -> int:
        """Load what the agent says; return how many iterations are done.

        At the start these are 0, or those of a DeepSpeed checkpoint that the script has loaded by
        itself before. Call it once, before the first iteration, on every rank.

        Raises:
            AgentLostError: the agent is gone.
            ArenaError: the memory that the agent names cannot be used.
        """
        self._resumed = True
        if self._session is None:
            return self._state.iteration()
        done = self._session.resume(self._user)
        if self._session.from_start:
            self._watch = self._state.watch_first_iterations(self._user, self._session.log.warn)
        return done

    @property
    def done(self) -> int:
        """How many iterations are done, of those that this process knows; see `iteration`.

        Asked first, it resumes: see `resume`.
        """
        return self._state.iteration() if self._resumed else self.resume()

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Train an iteration, or a part of one, that is tried again if another rank is lost in it.

            while checkpointer.done < iterations:
                with checkpointer.iteration():
                    loss = engine(sampler.next_batch())
                    engine.backward(loss)
                    engine.step()

        Its end is a `step()`; call `step(loss=loss)` inside to have the loss shown. Where a rank is
        lost this process stays: the engine's state, the user's, and random numbers are set back
        to the newest iteration that all have, out of this machine's memory, and the loop goes on
        from there, `done` having gone back. Whatever else the loop counts has to go by `done`, or
        be in `state`. An exception of the script's own leaves as it came.

        Where this process cannot go on (the warning says why) it is restarted, as without this.
        """
        session = self._session
        if not self._resumed:
            self.resume()
        self._stepped = False
        if session is None:
            yield
            self._step_once()
            return
        if self._refusal:
            session.log.warn(f"trainers are restarted when one is lost: {self._refusal}")
            self._refusal = ""
        session.begins_iteration()
        if session.is_over:  # told between two iterations
            self._go_on(session, None)
        try:
            yield
            self._step_once()
        except Exception as error:
            if not session.has_lost(error):
                raise
            self._go_on(session, error)

    def _step_once(self) -> None:
        if not self._stepped:
            self.step()

    def _go_on(self, session: TrainerSession, error: BaseException | None) -> None:
        session.go_on(error, self._user)
        self._monitor.follow(session.settings.generation)

    def step(self, loss: Any = None) -> None:
        """Checkpoint, if `engine.step()` has just ended an iteration; call it after each one.

        Returns at once; copies and transfers go on beside the next iteration.

        Args:
            loss: shown and logged; a number or a tensor of one element.

        Raises:
            ReplicationError: the checkpoint before could not be completed.
            MetaError: the user's state holds something that a checkpoint cannot.
            SecondEngineError: another engine trains in this process.
        """
        self._stepped = True
        self._state.stepped()
        if self._session is not None:
            ended = self._session.step(loss, self._meta)
            if ended:
                self._monitor.write(self._state.iteration(), self._session.log.newest)
            if ended and self._watch is not None and self._watch():
                self._watch = None

    def busy(self, what: str, limit_s: float = BUSY_LIMIT_S) -> AbstractContextManager[None]:
        """Say that this rank may be silent for longer than an iteration: no hang, no stall.

            with checkpointer.busy("evaluation"):
                evaluate(model)

        One rank is enough, while the others wait for it in a barrier. Not needed where collectives
        go on: those are signs of life. A process that is stopped counts as hung all the same.

        Args:
            what: in words, for the log.
            limit_s: silence beyond it is a stall after all.

        Raises:
            ValueError: the limit is not above 0.
        """
        if not limit_s > 0:
            raise ValueError(f"busy({what!r}): limit_s must be above 0, not {limit_s}")
        return nullcontext() if self._session is None else self._session.busy(what, limit_s)

    def before_update(self) -> None:
        """Wait until the state may change. The optimizer's steps call it by themselves.

        Raises:
            ReplicationError: the checkpoint under way could not be completed.
        """
        if self._session is not None:
            self._session.before_update()

    def finish(self) -> None:
        """Wait for the last checkpoint and tell the agent that training is over.

        Happens at the interpreter's exit too, if the script ended well.

        Raises:
            ReplicationError: the last checkpoint could not be completed.
        """
        if self._session is not None:
            session, self._session = self._session, None
            session.finish(self._meta)

    def _meta(self) -> dict[str, Any]:
        return {
            **self._state.meta(),
            "user": {name: held.state_dict() for name, held in self._user.items()},
            "random": capture_random_state(),  # last: a state_dict() may draw
        }


def _in_place(state: State) -> tuple[str, InPlace | None]:
    """Return why this process cannot go on where a rank is lost, or what it takes."""
    try:
        return "", InPlace(state)
    except CannotSwapError as refusal:
        return str(refusal), None


_claimed: list[bool] = []


def _claim_process() -> None:
    if _claimed:
        raise ValueError(
            "this process has a Checkpointer already, and an agent knows one of each trainer: put "
            "all that is trained into one engine (one module that holds the models, a parameter "
            "group each), or train without Castor"
        )
    _claimed.append(True)


def _finish_at_exit(checkpointer: Checkpointer) -> None:
    """Finish when the interpreter ends, unless an exception ended the script."""
    before = sys.excepthook
    failed: list[bool] = []

    def note(*details: Any) -> None:
        failed.append(True)
        before(*details)

    sys.excepthook = note

    def finish() -> None:
        if not failed:
            checkpointer.finish()

    atexit.register(finish)

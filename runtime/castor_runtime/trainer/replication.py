"""The thread that captures each iteration and brings its replicas into other machines' memory.

One checkpoint at a time, the same steps on every rank, over process groups that nothing else uses:

1. wait until this machine's replicas may be written (`missing_replicas`), then take the buffers;
2. capture the live state into the own replica;
3. send pieces in rounds as the gate releases them, and receive those of other ranks, straight into
   their replicas' buffers; digest each chunk as soon as it is whole;
4. exchange digests and meta, compare, commit (the header is written last);
5. agree: all ranks committed. Only then is the iteration complete, and only then may the buffer of
   the iteration before be overwritten (docs/invariants.md, 1 and 2).

Where memory is saved the own replica has no second buffer to capture into: live state is sent, and
captured after that agreement, by `castor_runtime.trainer.own_last`.

Where the live state turns out to have changed while it was read (`castor_runtime.trainer.moment`),
that iteration is left out on all ranks, and the one before stays what there is.

Any error ends the thread and is raised in the main thread at its next wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
import torch.distributed as dist

from castor_policy.checkpoint_memory import buffers_of, fills_own_last
from castor_policy.interleaving import EAGER, NONE
from castor_runtime.arena import Replica
from castor_runtime.arena.own_turn import OwnTurn
from castor_runtime.state.sections import Section, part_bytes
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.agreements import agree_on_sizes, agree_on_spans, all_can
from castor_runtime.trainer.checkpoint_steps import (
    Capture,
    Completed,
    Listener,
    Replicas,
    Route,
    Scheduled,
)
from castor_runtime.trainer.exchange import Digested, Exchange, Part
from castor_runtime.trainer.last_copy import last_copy
from castor_runtime.trainer.missing_replicas import MissingReplicas
from castor_runtime.trainer.moment import Moment
from castor_runtime.trainer.own_last import Agreement, LivePart, OwnLast
from castor_runtime.trainer.rank_words import Agreed, RankWord, heard, said, said_by
from castor_runtime.trainer.records import Records, ReplicationError
from castor_runtime.trainer.traffic import Traffic

KEPT = "kept"
"""Why there is a schedule that the generation before had: see `Capture.reason`."""


class Replicator:
    """Owns the checkpoint thread of one trainer.

    Args:
        settings: of the trainer.
        sections: of its part.
        replicas: where they lie on this machine.
        route: how they travel.
        agreed: the iteration that all ranks have loaded; None if they have loaded none from memory.
        missing: says when replicas may be written, and whether some are being fetched meanwhile.
        asked_to_hold: says whether this machine's agent asks all ranks to hold.
        turn: this rank's, to write over its own replica where that has one buffer.
        listener: told of each checkpoint.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        sections: Sequence[Section],
        replicas: Replicas,
        route: Route,
        *,
        agreed: int | None,
        missing: MissingReplicas,
        asked_to_hold: Callable[[], bool],
        turn: OwnTurn,
        listener: Listener,
    ) -> None:
        self._settings = settings
        self._sections = sections
        self._own = replicas.own
        self._own_last: OwnLast | None = None
        # By the job, the same on all ranks: a standby may have made a buffer more.
        copies = len(settings.replicas[settings.machine])
        if fills_own_last(buffers_of(settings.memory.mode, copies, is_own=True)):
            self._own_last = OwnLast(self._own, route.device, turn, lambda: self._closing)
        self._remote = dict(sorted(replicas.remote.items()))
        self._rooms = replicas.rooms
        self._route = route
        self._device = route.device
        self._control = route.control
        self._records = Records(settings, route.control, replicas)
        self._exchange = Exchange(
            settings,
            route.device,
            route.gate,
            route.launches,
            agree_on_sizes(part_bytes(sections), route.control),
            *route.transfers,
        )
        self._agreed = agreed
        self._missing = missing
        self._asked_to_hold = asked_to_hold
        self._listener = listener
        self._traffic = Traffic(
            EAGER,
            settings.traffic.chunk_bytes,
            len(settings.holders()),
            buffer_bytes=settings.traffic.buffer_bytes,
            sub_buffers=settings.traffic.sub_buffers,
            mu=Fraction(repr(settings.traffic.mu)),
            shortest_span_ns=round(settings.traffic.shortest_span_s * 1e9),
        )
        if route.spans_ns:
            self._travel_in(route.spans_ns, (agreed or 0) + 1, KEPT)
        self._drifted = False
        self._ranks: tuple[RankWord, ...] = ()
        self._holds = False
        self._left_out: int | None = None
        self._changed = threading.Condition()
        self._capture: Capture | None = None
        self._state_busy = False
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="castor-replication", daemon=True)
        self._thread.start()

    @property
    def agreed(self) -> int | None:
        """The newest iteration that is complete on every rank."""
        return self._agreed

    @property
    def left_out(self) -> int | None:
        """The newest iteration that was left out; the same on all ranks."""
        return self._left_out

    @property
    def holds(self) -> bool:
        """Some rank was asked to hold by the last agreement; the same on all ranks, and for good.

        Of use once `wait_complete` has returned.
        """
        return self._holds

    @property
    def spans_ns(self) -> tuple[int, ...]:
        """That checkpoints travel in, the same on all ranks; empty while they are measured."""
        return tuple(self._traffic.spans_ns)

    @property
    def drifted(self) -> bool:
        """Some rank's idle spans no longer fitted at the last agreement; the same on all ranks."""
        return self._drifted

    def start(self, capture: Capture) -> None:
        """Hand an iteration over. The one before must be complete: see `wait_complete`.

        Raises:
            ReplicationError: the thread has failed.
        """
        with self._changed:
            self._raise_failure()
            assert self._capture is None, "the iteration before is still under way"
            self._capture = capture
            self._state_busy = True
            self._changed.notify_all()

    def wait_state_free(self) -> None:
        """Return when nothing reads the live state any more.

        Raises:
            ReplicationError: the thread has failed.
        """
        self._wait(lambda: not self._state_busy)

    def wait_complete(self) -> None:
        """Return when the iteration that was handed over is complete on every rank.

        Raises:
            ReplicationError: the thread has failed.
        """
        self._wait(lambda: self._capture is None)

    def abandon(self) -> None:
        """Have the thread end, whatever it is at: what it waits for ends with its generation.

        Nothing of it writes into a replica, and nothing reads live state, once this returns.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._route.gate.open()
        self._route.launches.fail()
        self._thread.join()

    def close(self) -> None:
        """End the thread once it is idle."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: done() or self._failure is not None)
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise ReplicationError(
                f"the checkpoint thread of rank {self._settings.rank} failed: {self._failure}"
            ) from self._failure

    def _run(self) -> None:
        try:
            self._device.enter_thread()
            for replica in (self._own, *self._remote.values()):
                replica.touch(threads=1)
                self._device.pin(torch.frombuffer(replica.mapped[1], dtype=torch.uint8))
            if self._own_last is not None:
                self._device.pin(self._own_last.through)
            while (capture := self._next()) is not None:
                self._replicate(capture)
                with self._changed:
                    self._capture = None
                    self._changed.notify_all()
            self._device.unpin()
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            self._route.launches.fail()

    def _next(self) -> Capture | None:
        with self._changed:
            self._changed.wait_for(lambda: self._capture is not None or self._closing)
            return self._capture

    def _replicate(self, capture: Capture) -> None:
        began = time.monotonic()
        beside_fetch = self._missing.wait(self._agreed)
        self._reschedule(capture)
        self._rooms.note(self._own, len(capture.meta))
        own = self._begin_own(capture)
        parts = {
            rank: self._begin(held, capture.iteration, beside_fetch=beside_fetch)
            for rank, held in self._remote.items()
        }
        try:
            torn: list[str] = []
            self._capture_into(own, capture.moment, torn)
            captured = time.monotonic()
            exchanged = self._exchange.run(own, parts, self._traffic)
            if isinstance(own, LivePart):
                torn += self._torn(capture.moment)  # it is read once more
            sent = time.monotonic()
            own.digest_up_to(own.size_bytes)
            metas = self._records.exchange(own, capture.meta, parts, torn=bool(torn))
        except BaseException:
            for part in (own, *parts.values()):
                part.end(None)
            raise
        own.end(None if torn else capture.meta)
        for rank, part in parts.items():
            part.end(metas[rank])
        if isinstance(own, LivePart):
            is_complete = self._agree_and_turn(capture, own, torn=bool(torn))
            captured = time.monotonic()
        else:
            is_complete = self._agree(capture, torn=bool(torn))
        if not is_complete:
            self._leave_out(capture.iteration, tuple(torn))
            return
        ended = time.monotonic()
        self._listener.completed(
            Completed(
                capture.iteration,
                seconds=ended - began,
                sent_bytes=exchanged.sent_bytes,
                traffic=self._traffic,
                captured_s=captured - began + exchanged.captured_s,
                network_s=exchanged.network_s,
                sent_s=captured - began + exchanged.sent_s,
                commit_s=ended - sent,
                drifted=self._drifted,
                iterations=capture.pace.iterations,
                ranks=self._ranks,
            )
        )

    def _begin(self, replica: Replica, iteration: int, *, beside_fetch: bool = False) -> Part:
        generation = self._settings.generation
        return Part(replica.begin(iteration, generation, self._agreed, beside_fetch=beside_fetch))

    def _begin_own(self, capture: Capture) -> Part | LivePart:
        if self._own_last is None:
            return self._begin(self._own, capture.iteration)
        return self._own_last.begin(self._sections, capture.moment.live)

    def _capture_into(self, own: Digested, moment: Moment, torn: list[str]) -> None:
        """Have the own replica filled, unless that comes last.

        Args:
            own: the part.
            moment: the live state, which is free at the latest when all is exchanged.
            torn: gets what has changed of it by then.
        """
        if isinstance(own, Part):
            self._device.capture(
                self._sections,
                moment.live,
                own.data,
                lambda: torn.extend(self._free_state(moment)),
            )

    def _torn(self, moment: Moment) -> tuple[str, ...]:
        with self._device.aside():
            return moment.torn()

    def _free_state(self, moment: Moment) -> tuple[str, ...]:
        """Let the state change, which is copied; return what has changed already. In any thread."""
        torn = self._torn(moment)
        self._let_change()
        return torn

    def _let_change(self) -> None:
        with self._changed:
            self._state_busy = False
            self._changed.notify_all()

    def _leave_out(self, iteration: int, torn: tuple[str, ...]) -> None:
        """Give up what is here of an iteration that some rank could not capture."""
        if iteration != self._agreed:  # else only the own replica is not to be had
            for replica in (self._own, *self._remote.values()):
                replica.drop(iteration)
        self._left_out = iteration
        self._listener.left_out(iteration, torn)

    def _agree(self, capture: Capture, *, torn: bool) -> bool:
        """Agree that all ranks have committed; False if one had to leave the iteration out."""
        shared = self._words(capture, torn=torn)
        dist.all_reduce(shared, dist.ReduceOp.MIN, self._control)
        return self._take(shared, capture)

    def _agree_and_turn(self, capture: Capture, own: LivePart, *, torn: bool) -> bool:
        """Agree on the remote replicas, then write over the own one; False: it is left out."""
        assert self._own_last is not None, "it has made the part"
        iteration = capture.iteration
        with last_copy():
            shared = self._words(capture, torn=torn)
            work = dist.all_reduce(shared, dist.ReduceOp.MIN, self._control, async_op=True)
            agreement = Agreement(work)
            told = self._own_last.wait_agreed(agreement, iteration)
            if told and not self._take(shared, capture):
                self._let_change()
                return False
            generation = self._settings.generation
            whole = self._own_last.turn(own, capture.meta, iteration, generation)
        self._let_change()
        if not told:  # another rank of this machine was quicker, or a peer is gone
            agreement.wait()
            self._take(shared, capture)
        return all_can(whole, self._control)

    def _words(self, capture: Capture, *, torn: bool) -> torch.Tensor:
        hold = self._holds or self._asked_to_hold()
        mine = Agreed(capture.iteration, capture.drifted, torn, hold)
        word = said_by(capture.pace, capture.losses)
        return said(mine, word, self._settings.rank, self._settings.world_size)

    def _take(self, shared: torch.Tensor, capture: Capture) -> bool:
        """Take in what all ranks agreed on; False if one had to leave the iteration out."""
        agreed, self._ranks = heard(shared)
        if agreed.iteration != capture.iteration:
            raise ReplicationError(
                f"ranks checkpoint different iterations: {agreed.iteration} and "
                f"{capture.iteration}; call Checkpointer.step() on every rank after every "
                "engine.step()"
            )
        self._drifted = agreed.drifted
        if agreed.torn:
            return False
        self._agreed, self._holds = capture.iteration, agreed.hold
        return True

    def _reschedule(self, capture: Capture) -> None:
        """Make one schedule for all ranks: their mean spans, if they measured a link."""
        if capture.profile is None or self._settings.traffic.scheme in (NONE, EAGER):
            return
        spans_ns = agree_on_spans(capture.profile.spans_ns, self._control)
        if self._route.link is None or not spans_ns:
            return  # nothing travels, or nothing was measured
        self._travel_in(spans_ns, capture.iteration, capture.reason)

    def _travel_in(self, spans_ns: tuple[int, ...], iteration: int, reason: str) -> None:
        """Have checkpoints travel in these spans, which are the same on all ranks."""
        self._traffic = replace(
            self._traffic,
            scheme=self._settings.traffic.scheme,
            spans_ns=spans_ns,
            link=self._route.link,
            copy_link=self._route.copy_link,
        )
        size_bytes = part_bytes(self._sections)
        schedule = self._traffic.schedule(size_bytes)
        assert schedule is not None, "it has a link"
        self._listener.scheduled(Scheduled(iteration, reason, self._traffic, schedule, size_bytes))

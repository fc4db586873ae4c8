"""One trainer's session with its agent: layout, loading, iteration after iteration, the end.

What `Checkpointer` does inside Castor; outside it there is no session.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

from castor_policy.chunk_schedule import Link
from castor_policy.interleaving import EAGER, NONE
from castor_policy.period import is_due
from castor_runtime.arena import Replica, TrainerPhase
from castor_runtime.arena.own_turn import OwnTurn
from castor_runtime.state.meta import encode
from castor_runtime.state.protocol import DamagedError, State, Stateful
from castor_runtime.state.sections import part_bytes
from castor_runtime.trainer.agent_link import AgentLink, Heartbeat, TrainerSettings
from castor_runtime.trainer.agreements import agree_on_attempt, agree_on_fingerprint
from castor_runtime.trainer.busy import BusySections
from castor_runtime.trainer.checkpoint_steps import Capture, Replicas, Route
from castor_runtime.trainer.collective_count import CollectiveCount
from castor_runtime.trainer.final_state import write_state
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.joining import (
    NewGroup,
    OpenExchange,
    Spans,
    choose_device,
    choose_launches,
    choose_spans,
    new_group,
    open_counters,
    open_exchange,
)
from castor_runtime.trainer.link_probe import LinkProbe, agree_on_link
from castor_runtime.trainer.loading import Loader
from castor_runtime.trainer.meta_room import MetaRooms
from castor_runtime.trainer.missing_replicas import MissingReplicas
from castor_runtime.trainer.moment import Moments
from castor_runtime.trainer.replication import Replicator
from castor_runtime.trainer.span_profile import Profiler, SpanProfile
from castor_runtime.trainer.traffic import Traffic
from castor_runtime.trainer.trainer_log import TrainerLog

_FOR_EVER_NS: Final = (1 << 63) - 1


class TrainerSession:
    """A trainer's part in one generation.

    Args:
        settings: of the trainer.
        state: what it checkpoints.
        meta_bytes: room for the meta of one checkpoint at the start.
        timeout_s: of transfers.
        update_after: "replication" or "capture"; see `Checkpointer`.
        make_group: makes a process group of all ranks, who call it at the same points.
        exchange_by: makes what checkpoints are exchanged by.

    Attributes:
        log: what is told to the agent.
        from_start: whether this life began with nothing to load; known once `resume` has returned.

    Raises:
        AgentLostError: the agent is gone.
        ValueError: the scheme is not known, or not every rank trains.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        state: State,
        meta_bytes: int,
        timeout_s: float,
        update_after: str,
        make_group: NewGroup = new_group,
        exchange_by: OpenExchange = open_exchange,
    ) -> None:
        if settings.traffic.scheme != NONE:  # an unknown scheme is an error now
            Traffic(settings.traffic.scheme, settings.traffic.chunk_bytes, 0)
        self._settings = settings
        self._state = state
        self._meta_bytes = meta_bytes
        self._timeout_s = timeout_s
        self._update_after = update_after
        self._control_block = open_counters(settings)
        self._counters = self._control_block.rank(settings.local_rank)
        self._collectives = CollectiveCount(self._counters)
        self._heartbeat = Heartbeat(self._counters, self._collectives.update)
        self._link = AgentLink(settings.socket)
        self._link.send(
            "hello", rank=settings.rank, generation=settings.generation, pid=os.getpid()
        )
        self.log = TrainerLog(settings, self._link, self._counters)
        timeout = timedelta(seconds=timeout_s)
        # Every rank makes the groups in this order.
        self._control = make_group("gloo", timeout)
        self._gate = Gate()
        self._exchanging = exchange_by(settings, state.device(), self._control, make_group, timeout)
        apart = (self._control, self._exchanging.group)
        self._collectives.leave_out(*(group for group in apart if group is not None))
        self._device = choose_device(settings, state.device(), self._gate, self._exchanging)
        self._launches = choose_launches(self._device, self._gate)
        self._idle = choose_spans(state.device(), self._gate)
        self._idle.tell_passed(self._launches.passed)
        self._watches_spans = settings.traffic.scheme != EAGER
        self._profiler = Profiler(settings.traffic.profile_iterations)
        self._moments = Moments(state.sections, state.clone_at_capture, state.trained)
        self._fingerprint = agree_on_fingerprint(settings, state.sections, self._control)
        self._send_layout()
        most = len(settings.persistence.tiers)
        self._loader = Loader(
            settings,
            state,
            self._fingerprint,
            self._open,
            lambda names: agree_on_attempt(names, most, self._control),
        )
        self._resumed = False
        self.from_start = False
        self._replicator: Replicator | None = None
        self._own: Replica | None = None
        self._opened: dict[str, Replica] = {}
        self._last = 0
        self._taken = 0
        """The newest iteration that was loaded, or handed over to be checkpointed."""
        self._holds_next = False
        """The checkpoint that was handed over last is the one to hold after."""
        self._ended_at = time.monotonic()
        self._busy = BusySections(self._counters)

    def resume(self, user: Mapping[str, Stateful]) -> int:
        """See `Checkpointer.resume`; `user` is restored too."""
        self._counters.phase = TrainerPhase.LOADING
        began = time.monotonic()
        while True:
            order = self._link.load_order()
            ordered = time.monotonic()
            try:
                seconds = self._loader.load(order, user)
                break
            except DamagedError:
                self._link.send("corrupt", rank=self._settings.rank, iteration=order["iteration"])
        # From the start: what the script has loaded by itself, DeepSpeed's own checkpoints, counts.
        self.from_start = order["tier"] == "scratch"
        self._last = self._state.iteration() if self.from_start else int(order["iteration"])
        self._taken = self._last
        self._own = self._open(order["segments"][str(self._settings.rank)])
        self._link.send(
            "resumed", iteration=self._last, seconds={"wait": ordered - began, **seconds}
        )
        link = self._measure_link()
        if self._settings.traffic.scheme != NONE:
            self._replicator = self._make_replicator(order, self._own, link)
        self._resumed = True
        self._counters.iteration = self._last
        self._counters.phase = TrainerPhase.TRAINING
        if self._watches_spans:
            _watch(self._idle)
        self._idle.end_iteration()
        self._ended_at = time.monotonic()
        return self._last

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
        self._last = iteration
        measured = self._idle.end_iteration()
        use = measured[1] if measured is not None and self._watches_spans else None
        self.log.iteration_ended(iteration, loss, began - self._ended_at, use)
        self._ended_at = began
        if measured is not None:
            self._profiler.add(measured[0])
        if self._replicator is None:
            self._due_profile(drift=False)
        elif is_due(iteration, self._settings.traffic.checkpoint_every):
            self._checkpoint(self._replicator, meta, began)
        return True

    def _checkpoint(
        self, replicator: Replicator, meta: Callable[[], dict[str, Any]], began: float
    ) -> None:
        self._taken = self._last
        self._let_all_go()
        self._waiting(replicator.wait_complete)
        # Where updates do not wait for replication, all ranks know of it here, and not before.
        self._holds_next = replicator.holds
        encoded = encode(meta())
        # Rounds that are launched in one order wait on all ranks for the first few, or on none.
        settles = self._device.launches_in_order and self._moments.is_settling
        with self._device.moment():
            moment = self._moments.take(self._state.live())
        profile, reason = self._due_profile(drift=replicator.drifted)
        drifted = self._watches_spans and self._profiler.has_drifted()
        # What is measured before there is a schedule must not be disturbed (Gemini sec. 5.4).
        blocks = self._settings.traffic.scheme == "blocking" or (
            self._watches_spans and self._profiler.profile is None
        )
        self._idle.close_gate()
        self._launches.expect()
        self.log.handed_over()
        replicator.start(Capture(self._last, encoded, moment, profile, reason, drifted))
        self._waiting(self._launches.handed_over)
        if blocks or settles or moment.settling:
            self._gate.open()
            self._launches.let_all_go()
            self._waiting(replicator.wait_complete if blocks else replicator.wait_state_free)
        self.log.add_blocked(time.monotonic() - began)

    @contextmanager
    def busy(self, what: str, limit_s: float) -> Iterator[None]:
        """See `Checkpointer.busy`."""
        began = time.monotonic()
        with self._busy(limit_s):
            yield
        self.log.busy(self._last, what, time.monotonic() - began)

    def before_update(self) -> None:
        """See `Checkpointer.before_update`."""
        self._device.note_update()
        self._idle.before_update()
        replicator = self._replicator
        if replicator is None:
            return
        with self.log.blocked(self._idle.stands_since_s):
            self._let_all_go()
            only_captured = self._update_after == "capture" and not self._holds_next
            self._waiting(replicator.wait_state_free if only_captured else replicator.wait_complete)
            # An iteration that had to be left out is no place to hold at: it would be lost.
            if replicator.holds and not only_captured and replicator.agreed == self._taken:
                self._hold(replicator)

    def _let_all_go(self) -> None:
        """Let what is left of the checkpoint go: training asks for no more traffic before it."""
        self._idle.open_gate()
        self._launches.let_all_go()

    def _hold(self, replicator: Replicator) -> NoReturn:
        """Go no further: every rank is here, and all that was trained is complete everywhere.

        The agent ends this process, and may need it until then: nothing is taken down.
        """
        self._counters.busy_until_ns = _FOR_EVER_NS
        self._link.send("held", iteration=replicator.agreed)
        self._link.wait_for_end()

    def finish(self, meta: Callable[[], dict[str, Any]]) -> None:
        """See `Checkpointer.finish`; `meta` is called if the last iteration has no checkpoint."""
        if self._settings.traffic.scheme == NONE:
            self._keep_final_state(meta)
        if self._replicator is not None:
            self._let_all_go()
            self._replicator.wait_complete()
            # Nothing else would stand for the end, where the last one is not due or was left out.
            if self._taken != self._last or self._replicator.left_out == self._last:
                self._checkpoint(self._replicator, meta, time.monotonic())
                self._let_all_go()
                self._replicator.wait_complete()
            self._replicator.close()
        self._idle.remove()
        self.log.tell_iterations(self._last)
        self._counters.phase = TrainerPhase.FINISHED
        self._heartbeat.stop()

    def _ask_for_room(self, part: int, meta_bytes: int) -> None:
        self._link.send("room", part=part, meta_bytes=meta_bytes)

    def _keep_final_state(self, meta: Callable[[], dict[str, Any]]) -> None:
        """Without checkpoints too, agents tell what training came to by what lies in memory."""
        final = self._profiler.final()
        if final is not None:
            self.log.profiled(self._last, final)
        if self._own is None or self._last == 0:
            return
        MetaRooms([self._own], self._ask_for_room, self._timeout_s)
        writing = self._own.begin(self._last, self._settings.generation, None)
        with self._device.moment():
            write_state(writing, self._state.sections, self._state.live, meta)

    def _waiting(self, wait: Callable[[], None]) -> None:
        """Wait for the checkpoint; that is no part of the iteration's timeline."""
        began_ns = time.monotonic_ns()
        wait()
        self._idle.waited(time.monotonic_ns() - began_ns)

    def _due_profile(self, *, drift: bool) -> tuple[SpanProfile | None, str]:
        due = self._profiler.due(drift=drift) if self._watches_spans else None
        if due is None:
            return None, ""
        profile, _ = due
        self.log.profiled(self._last, profile)
        return due

    def _measure_link(self) -> Link | None:
        """Return the hop that checkpoints take; None if none does, or by no schedule."""
        settings = self._settings
        if not self._watches_spans or not settings.holders():
            return None
        alone = settings.traffic.scheme in ("unpipelined", "naive")
        measured = LinkProbe(
            post=self._exchanging.post,
            control=self._control,
            device=self._exchanging.device,
            holders=settings.holders(),
            sources=[rank for rank, _ in settings.sources()],
            in_flight=1 if alone else settings.traffic.sub_buffers,
        ).measure()
        self.log.measured(measured)
        return measured.agreed

    def _send_layout(self) -> None:
        folder = Path(self._settings.folder or Path(self._settings.socket).parent)
        template = folder / f"template-{self._settings.rank}"
        persists = bool(self._settings.persistence.tiers)
        if persists:
            self._state.write_template(template)
        sections = self._state.sections
        self._link.send(
            "layout",
            rank=self._settings.rank,
            data_bytes=part_bytes(sections),
            meta_bytes=self._meta_bytes,
            chunk_bytes=self._settings.traffic.chunk_bytes,
            sections=[
                {"name": s.name, "offset": s.offset, "dtype": s.dtype, "shape": list(s.shape)}
                for s in sections
            ],
            fingerprint=self._fingerprint,
            template=str(template) if persists else None,
        )

    def _open(self, name: str) -> Replica:
        if name not in self._opened:
            mark = bytes.fromhex(self._fingerprint)
            self._opened[name] = Replica.open(name, run=self._settings.run, fingerprint=mark)
        return self._opened[name]

    def _make_replicator(
        self, order: Mapping[str, Any], own: Replica, link: Link | None
    ) -> Replicator:
        segments = order["segments"]
        settings = self._settings
        remote = {rank: self._open(segments[str(rank)]) for rank, _ in settings.sources()}
        rooms = MetaRooms([own, *remote.values()], self._ask_for_room, self._timeout_s)
        in_memory = order["tier"] in ("own_memory", "peer")
        loaded = int(order["iteration"]) if in_memory else None
        return Replicator(
            settings,
            self._state.sections,
            Replicas(own, remote, rooms),
            Route(
                self._device,
                self._control,
                self._gate,
                self._launches,
                link,
                self._copy_link(link),
                (self._idle.transfer_began, self._idle.transfer_ended),
            ),
            agreed=loaded,
            missing=MissingReplicas(settings.recovery.redundancy, loaded, self._link),
            asked_to_hold=lambda: bool(self._counters.hold),
            turn=OwnTurn(self._control_block.ranks, settings.local_rank),
            listener=self.log,
        )

    def _copy_link(self, link: Link | None) -> Link | None:
        """Return the hop to CPU memory, the slowest of all ranks; None if there is none."""
        copy_link = self._device.copy_link
        if link is None or copy_link is None:
            return None
        return agree_on_link(copy_link, self._control)


def _watch(idle: Spans) -> None:
    comm = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.cdb is not None:
        idle.install(comm.cdb)

"""How a trainer's session joins a generation, loads, and leaves it for the next one in place."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from castor_policy.interleaving import NONE
from castor_runtime.arena import SHARED_MEMORY, RankControl, Replica, TrainerPhase
from castor_runtime.state.protocol import DamagedError, State, Stateful
from castor_runtime.state.sections import part_bytes
from castor_runtime.trainer.agent_link import AgentLink, Heartbeat, TrainerSettings
from castor_runtime.trainer.agreements import Learned, agree_on_attempt, check_shared
from castor_runtime.trainer.busy import BusySections
from castor_runtime.trainer.collective_count import CollectiveCount
from castor_runtime.trainer.in_place import InPlace, tells_of_lost_rank
from castor_runtime.trainer.joining import (
    NewGroup,
    OpenExchange,
    new_group,
    open_counters,
    open_exchange,
)
from castor_runtime.trainer.loading import Loader
from castor_runtime.trainer.losses import Loss
from castor_runtime.trainer.meeting import VARIABLE
from castor_runtime.trainer.moment import Moments
from castor_runtime.trainer.own_time import OwnTime
from castor_runtime.trainer.records import ReplicationError
from castor_runtime.trainer.span_profile import Profiler
from castor_runtime.trainer.traffic import Traffic
from castor_runtime.trainer.trainer_generation import TrainerGeneration
from castor_runtime.trainer.trainer_log import TrainerLog


class SessionGenerations:
    """A trainer's session, as far as it joins generations, loads, and leaves them.

    Args:
        settings: of the trainer.
        state: what it checkpoints.
        meta_bytes: room for the meta of one checkpoint at the start.
        timeout_s: of transfers.
        update_after: "replication" or "capture"; see `Checkpointer`.
        make_group: makes a process group of all ranks, who call it at the same points.
        exchange_by: makes what checkpoints are exchanged by.
        in_place: what it takes to go on where a rank is lost; None: this process ends then.

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
        in_place: InPlace | None = None,
    ) -> None:
        if settings.traffic.scheme != NONE:  # an unknown scheme is an error now
            Traffic(settings.traffic.scheme, settings.traffic.chunk_bytes, 0)
        self._settings = settings
        self._state = state
        self._meta_bytes = meta_bytes
        self._timeout_s = timeout_s
        self._update_after = update_after
        self._make_group = make_group
        self._exchange_by = exchange_by
        self._in_place = in_place
        self._control_block = open_counters(settings)
        self._counters = self._control_block.rank(settings.local_rank)
        if settings.is_spare:  # the rank has a trainer, who writes its counters
            self._counters = RankControl.unseen()
        self._collectives = CollectiveCount(self._counters)
        self._heartbeat = Heartbeat(self._counters, self._collectives.update)
        self._link = AgentLink(settings.socket, settings.generation)
        self.log = TrainerLog(settings, self._link, self._counters)
        self._profiler = Profiler(settings.traffic.profile_iterations)
        self._moments = Moments(state.sections, state.clone_at_capture, state.trained)
        self._opened: dict[str, tuple[int, Replica]] = {}
        self._learned: Learned | None = None
        self._resumed = False
        self._tells_in_place = False
        self.from_start = False
        self._own: Replica | None = None
        self._last = 0
        self._taken = 0
        """The newest iteration that was loaded, or handed over to be checkpointed."""
        self._holds_next = False
        """The checkpoint that was handed over last is the one to hold after."""
        self._ended_at = time.monotonic()
        self._own_time = OwnTime(self._collectives.waited_ns)
        self._losses: list[tuple[int, Loss]] = []
        """Of the iterations since the last one that was handed over."""
        self._busy = BusySections(self._counters)
        self._here: TrainerGeneration | None = None
        """What there is of this generation; None while it has not met the others in it."""
        if in_place is not None:
            self._link.on_leave(self._end)
        self._hello()
        # Every rank makes the groups in this order.
        self._control = make_group("gloo", timedelta(seconds=timeout_s))
        self._collectives.leave_out(self._control)
        if not settings.in_place:
            self._join()

    @property
    def settings(self) -> TrainerSettings:
        """Of the trainer, in the generation that it is in."""
        return self._settings

    def _hello(self) -> None:
        settings = self._settings
        self._link.send(
            "hello", rank=settings.rank, generation=settings.generation, pid=os.getpid()
        )

    def _join(self) -> None:
        """Make, with all other ranks, what this generation needs; tell the agent the layout."""
        here = TrainerGeneration(
            self._settings,
            self._state,
            self._link,
            self._control,
            self._timeout_s,
            self._make_group,
            self._exchange_by,
        )
        self._here = here
        if here.exchanging.group is not None:
            self._collectives.leave_out(here.exchanging.group)
        self._send_layout(here.fingerprint)

    def resume(self, user: Mapping[str, Stateful]) -> int:
        """See `Checkpointer.resume`; `user` is restored too."""
        if self._settings.is_spare:
            self._link.send("waits")
            self._join_next()
        elif self._settings.in_place:
            assert self._in_place is not None, "its groups can be connected"
            self._in_place.connect(self._settings, os.environ[VARIABLE], lambda: self._link.is_over)
            self._join()
        return self._load(user)

    def _load(self, user: Mapping[str, Stateful]) -> int:
        self._counters.phase = TrainerPhase.LOADING
        here, settings = self._within(), self._settings
        most = len(settings.persistence.tiers)
        loader = Loader(
            settings,
            self._state,
            here.fingerprint,
            self._open,
            lambda names: agree_on_attempt(names, most, self._control),
        )
        began = time.monotonic()
        while True:
            order = self._link.load_order()
            ordered = time.monotonic()
            try:
                seconds = loader.load(order, user)
                break
            except DamagedError:
                self._link.send("corrupt", rank=settings.rank, iteration=order["iteration"])
        # From the start: what the script has loaded by itself, DeepSpeed's own checkpoints, counts.
        self.from_start = order["tier"] == "scratch"
        self._last = self._state.iteration() if self.from_start else int(order["iteration"])
        self._taken = self._last
        self._holds_next = False
        self._own = self._open(order["segments"][str(settings.rank)])
        self._link.send(
            "resumed", iteration=self._last, seconds={"wait": ordered - began, **seconds}
        )
        if settings.in_place:
            check_shared(shared_by_all(self._state), self._control)
            assert self._in_place is not None, "it has met the others by it"
            self._in_place.retrace(self._control)
        if self._learned is None and order["learned"] is not None:
            self._learned = Learned.from_json(order["learned"])
        self._learned = here.learn(self._learned, self.log.measured)
        if self._learned is not None and not self._learned.spans_ns:
            self.log.learned(self._learned)  # else the schedule tells of it
        self._profiler.begin_anew(() if self._learned is None else self._learned.spans_ns)
        if settings.traffic.scheme != NONE:
            here.replicate(
                order,
                self._open,
                self._learned,
                self._ask_for_room,
                lambda: bool(self._counters.hold),
                self._control_block,
                self.log,
            )
        self._resumed = True
        self._counters.iteration = self._last
        self._counters.phase = TrainerPhase.TRAINING
        here.watch_collectives()
        self._ended_at = time.monotonic()
        self._own_time.begin()
        self._losses.clear()
        return self._last

    def _within(self) -> TrainerGeneration:
        assert self._here is not None, "it has met the others"
        return self._here

    # ---- in place --------------------------------------------------------------------------------

    def begins_iteration(self) -> None:
        """Tell the agent, once, that this trainer goes on in place where it can."""
        if self._in_place is not None and not self._tells_in_place:
            self._tells_in_place = True
            self._link.send("in_place")

    @property
    def is_over(self) -> bool:
        """Whether the agent has said that the generation is over."""
        return self._link.is_over

    def has_lost(self, error: BaseException) -> bool:
        """Whether an error says that a rank is lost, and this trainer can go on without it."""
        if self._in_place is None or not self._tells_in_place:
            return False
        return tells_of_lost_rank(error) or (self.is_over and isinstance(error, ReplicationError))

    def go_on(self, error: BaseException | None, user: Mapping[str, Stateful]) -> int:
        """Leave the generation that has lost a rank, join the next, and load; return what is done.

        Args:
            error: what training met; None: the agent has said it first.
            user: is restored, too.

        Raises:
            AgentLostError: the agent is gone.
            CannotSwapError: this process cannot go on.
        """
        while True:
            try:
                self._leave(error)
                self._join_next()
                return self._load(user)
            except Exception as again:
                if not self.has_lost(again):
                    raise
                error = again

    def _leave(self, error: BaseException | None) -> None:
        if error is not None and not self.is_over:
            self._link.send("lost_peer", reason=_first_line(error))
            if not self._link.wait_over(self._timeout_s):
                raise error
        self._counters.phase = TrainerPhase.STARTING
        if self._here is not None:
            # Spans that all ranks follow are the same on all; a checkpoint that was being made
            # with new ones was agreed on by all or by none of those that are left.
            self._learned = self._here.learned(self._learned)
            self._here.give_up()
            self._here = None
        assert self._in_place is not None, "only then it leaves"
        self._in_place.leave()
        self._link.send("left")

    def _join_next(self) -> None:
        assert self._in_place is not None, "only then it joins again"
        order = self._link.join_order()
        if self._settings.is_spare:
            write_into(order["log"])
            self._counters.slots = self._control_block.rank(self._settings.local_rank).slots
        self._settings = TrainerSettings.from_json(order["settings"])
        self.log.follow(self._settings)
        self._hello()
        self._in_place.connect(self._settings, order["rendezvous"], lambda: self._link.is_over)
        self._join()

    def _end(self, generation: int) -> None:
        """Have whatever waits in that generation fail; called by the link's thread."""
        assert self._in_place is not None, "else nobody asks for it"
        self._in_place.end(generation)
        if self._here is not None and generation >= self._settings.generation:
            self._here.end()

    # ---- memory --------------------------------------------------------------------------------

    def _ask_for_room(self, part: int, meta_bytes: int) -> None:
        self._link.send("room", part=part, meta_bytes=meta_bytes)

    def _send_layout(self, fingerprint: str) -> None:
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
            fingerprint=fingerprint,
            template=str(template) if persists else None,
        )

    def _open(self, name: str) -> Replica:
        # Mappings outlive a generation; memory that was made anew since has its name, not its file.
        file = (SHARED_MEMORY / name).stat().st_ino
        known = self._opened.get(name)
        if known is not None and known[0] == file:
            return known[1]
        mark = bytes.fromhex(self._within().fingerprint)
        replica = Replica.open(name, run=self._settings.run, fingerprint=mark)
        self._opened[name] = (file, replica)
        return replica


def shared_by_all(state: State) -> dict[str, object]:
    """Return what every rank of a job has alike, by name."""
    small = state.meta()
    schedules = {name: small[name] for name in ("loss_scaler", "lr_scheduler") if name in small}
    shared: dict[str, object] = {"count of iterations": state.iteration()}
    return shared | schedules


def write_into(log: str) -> None:
    """Have what this process writes to stdout and stderr go to another file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    opened = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.close(opened)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"

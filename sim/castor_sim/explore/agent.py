"""An agent's process under simulation: the policy's own `Worker` and `Root`, and what drives them.

Nothing here decides. As in the runtime's driver every event goes into the policy's `AgentLife`: to
the root at once, and to the worker one at a time; the worker's effects are carried out in order,
and wait while trainers are being stopped or memory is inspected.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from castor_policy.agents import patience, store_writes
from castor_policy.agents.effects import (
    AskDrain,
    Campaign,
    Depose,
    Exit,
    Log,
    Offer,
    ParkTrainers,
    Persist,
    Report,
    RootEffect,
    RootWrite,
    StopTrainers,
    WatchPeers,
    WorkerEffect,
    WritePlan,
)
from castor_policy.agents.events import (
    TICK_S,
    AgentEvent,
    SessionOpened,
    SessionRenewed,
    Tick,
    TrainerEnded,
    WorkerEvent,
)
from castor_policy.agents.exit_codes import REFUSED
from castor_policy.agents.life import AgentLife
from castor_policy.agents.office import Tenure
from castor_policy.agents.root import Root
from castor_policy.agents.store_view import StoreView
from castor_policy.agents.worker import Worker
from castor_policy.store import TxnResult
from castor_records.events.storing import RootElected
from castor_sim.explore.checkpoint_model import newest_generation
from castor_sim.explore.earlier_run import take_up
from castor_sim.explore.machine import carry_out
from castor_sim.explore.peer_watch import PeerWatch
from castor_sim.explore.roles import Host, Trainer
from castor_sim.explore.session import Session
from castor_sim.explore.surroundings import Surroundings
from castor_sim.explore.trainer import LOST_PEER, OWN_ERROR
from castor_sim.explore.trainer_watch import TrainerWatch

_LATENCY_S = (0.001, 0.01)
_SELDOM_S = (0.02, 0.3)  # a few messages take much longer, and are overtaken
_SELDOM = 0.05
_STOP_S = (0.005, 0.05)
_GIVEN_UP_LATE = 0.3


class SimulatedAgent:
    """One life of one agent.

    Args:
        world: it lives in.
        host: its machine.
    """

    def __init__(self, world: Surroundings, host: Host) -> None:
        host.lives += 1
        self.world = world
        self.host = host
        self.name = host.name
        self.incarnation = f"{host.name}.{host.lives}"
        self.draw = random.Random(f"{world.seed} {self.incarnation}")  # noqa: S311 - no secret
        self.alive = True
        self.exited: int | None = None
        self.paused = False
        self.trainers: dict[int, Trainer] = {}
        self.offers: dict[int, Offer] = {}
        self.redundant_generation = 0
        self.fetches_no_more = 0  # generation whose fetches were given up
        self.work = 0  # goes up when what was begun is given up
        self.parked: frozenset[int] = frozenset()  # trainers that have left their generation
        self.persist: Persist | None = None
        self.hold_asked = 0  # generation whose trainers are to hold
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._effects: deque[WorkerEffect] = deque()
        self._events: deque[AgentEvent] = deque()
        self._held = False
        self._has_begun = False
        self._held_since_s: float | None = None
        self.is_stuck = False  # it carries out what never ends
        self._disturbances = 0
        self.lease_counts_from_s = float("-inf")  # by this machine's clock, as the store counts
        self._clock = (world.now_s, world.now_s, 1.0)
        self._trainer_watch = TrainerWatch(world, self)
        self.peer_watch = PeerWatch(world, self)
        take_up(world.spec, host)
        offered = {rank: replica.offered() for rank, replica in sorted(host.memory.items())}
        self.worker = Worker(
            world.spec,
            self.name,
            self.incarnation,
            self.incarnation,
            host.standby,
            self.local_s(),
            left={rank: tuple(sorted(held)) for rank, held in offered.items() if held},
            left_generation=newest_generation(host.memory),
        )
        self.session = Session(world, self)
        tenure = partial(Tenure.seen_in, self.session.view)
        journal = world.journal(self.name, self.incarnation)
        self.life = AgentLife(self.worker, tenure, validates=True, journal=journal)

    def start(self) -> None:
        """Come up; the first thing is the name, and nothing is decided before it is claimed."""
        self._held = True
        self.session.report(self.worker.report)
        self.session.open()

    def claimed(self) -> None:
        """Begin, once the name is this life's."""
        if not self._has_begun:
            self._has_begun = True
            self.world.claimed(self)
            self._held = False
            for event in tuple(self._events):
                self._decide(event)
            self._tick()

    # ---- time ----------------------------------------------------------------------------------

    def local_s(self) -> float:
        """Return what this machine's steady clock says."""
        since_s, shown_s, rate = self._clock
        return shown_s + (self.world.now_s - since_s) * rate

    def real_s(self, local_s: float) -> float:
        """Return how long it takes until this clock has gone on by `local_s`."""
        return local_s / self._clock[2]

    def set_clock(self, rate: float, jump_s: float) -> None:
        """Let the clock jump forward and run at another rate from now on."""
        self._clock = (self.world.now_s, self.local_s() + jump_s, rate)
        self._disturbances += 1

    def moment(self) -> object:
        """Return what changes when this agent is paused or its clock is: it then knows no time."""
        return self._disturbances, self.paused

    def latency_s(self) -> float:
        """Return how long a message to or from the store takes."""
        bounds = _SELDOM_S if self.draw.random() < _SELDOM else _LATENCY_S
        return self.draw.uniform(*bounds) * self.host.slowness

    def later(self, delay_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call back after a time, unless the agent has died; once it is awake, if it is paused."""
        self.world.after(delay_s, self._arrive, what, arguments)

    def _arrive(self, what: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.paused:
            self._inbox.append((what, arguments))
        else:
            what(*arguments)

    def wake(self, *, timers_first: bool) -> None:
        """Go on after a pause with what has come meanwhile; timers may come before it or after."""
        self._disturbances += 1
        self.paused = False
        inbox, self._inbox = self._inbox, []
        if timers_first:
            inbox.sort(key=lambda item: item[0] != self._tick)
        for what, arguments in inbox:
            self._arrive(what, arguments)

    # ---- events --------------------------------------------------------------------------------

    @property
    def root(self) -> Root | None:
        """What it decides as root; None while it is not."""
        return self.life.root

    def see(self, event: AgentEvent) -> None:
        """Take an event in."""
        if not self.alive:
            return
        if self._has_begun:
            self._decide(event)
        self._events.append(event)
        self._carry_on()

    @property
    def lease(self) -> int | None:
        """The lease that its keys live by."""
        return self.session.lease

    @property
    def view(self) -> StoreView:
        """What it has seen of the store."""
        return self.session.view

    @property
    def has_obeyed(self) -> bool:
        """Whether all that it was told is done, or begun."""
        return not (self._held or self._events or self._effects or self.paused)

    def hold(self, span_s: float, then: Callable[[], None], stuck_until_s: float = 0.0) -> None:
        """Let the worker do nothing until `then` is done: `span_s` of its work from now.

        Not before `stuck_until_s` either, however fast or slow the machine is.
        """
        self._held = True
        self._held_since_s = self.local_s()
        self.is_stuck = math.isinf(stuck_until_s)
        stuck_s = stuck_until_s - self.world.now_s
        self.later(max(span_s * self.host.slowness, stuck_s), self._go_on, then)

    def _go_on(self, then: Callable[[], None]) -> None:
        then()
        self._held = False
        self._held_since_s = None
        self._carry_on()

    def serves(self) -> bool:
        """Whether the lease is kept: not by who is stuck."""
        since_s = self._held_since_s
        return since_s is None or patience.serves(self.world.spec, self.local_s() - since_s)

    def _carry_on(self) -> None:
        while self.alive and not self._held and (self._effects or self._events):
            if self._effects:
                carry_out(self._effects.popleft(), self.world, self)
            else:
                event = self._events.popleft()
                self._effects.extend(self.life.obey(event, self.local_s()))
                if isinstance(event, (SessionOpened, SessionRenewed)):
                    self.world.monitor.renewed(self)

    def _tick(self) -> None:
        self.later(self.real_s(TICK_S), self._tick)
        self._trainer_watch.look()
        self.see(Tick())

    def trainer_said(self, event: WorkerEvent) -> None:
        """Pass on what a trainer of this machine said, or what it shows in shared memory."""
        self._arrive(self.see, (event,))

    def trainer_ended(self, trainer: Trainer, code: int) -> None:
        """Pass on that a trainer's process has ended, unless it was killed from here."""
        if self.trainers.get(trainer.rank) is trainer:
            said = "ScriptError" if code == OWN_ERROR else ""
            generation, rank = trainer.generation, trainer.rank
            lost, early = code == LOST_PEER, code == 0 and not trainer.has_finished
            self.see(TrainerEnded(generation, rank, code, said, lost_peer=lost, left_early=early))

    # ---- effects -------------------------------------------------------------------------------

    def stop_as_told(self) -> None:
        """Kill the trainers; what follows waits until they are gone."""
        self.parked = frozenset()
        # What was begun may answer until it is given up: before the trainers end, or after.
        late = self.draw.random() < _GIVEN_UP_LATE
        stuck_until_s = self.host.stop_stuck_until_s if self.trains() else 0.0
        turned = max((trainer.turned for trainer in self.trainers.values()), default=0)
        for trainer in self.trainers.values():
            trainer.turn_at_last(turned)
        self.stop_trainers(give_up=not late)
        then = self._give_up if late else _nothing
        self.hold(self.draw.uniform(*_STOP_S), then, stuck_until_s)

    def park_as_told(self) -> None:
        """Have the trainers leave that can, and kill the others; what follows waits for it."""
        able = [one for one in self.trainers.values() if one.resumed and one.can_run()]
        left = self.parked | {one.rank for one in able if self.world.in_place}
        self.stop_as_told()
        self.parked = left

    def _give_up(self) -> None:
        self.work += 1

    def trains(self) -> bool:
        """Whether a trainer of this agent lives."""
        return any(trainer.alive for trainer in self.trainers.values())

    def stop_trainers(self, *, give_up: bool) -> None:
        """Kill the trainers and give up fetches, verifications and inspections."""
        if give_up:
            self._give_up()
        for trainer in self.trainers.values():
            trainer.kill()
        self.trainers.clear()
        self.offers.clear()
        self._trainer_watch.forget()

    def refuse(self, reason: str) -> None:
        """End with a sentence for whoever started this; once is enough."""
        if not self.alive:
            return
        self.world.note(f"{self.incarnation} refuses to start: {reason}")
        self.exited = REFUSED
        self.end()

    def end(self) -> None:
        """End the process; its trainers end with it."""
        self.alive = False
        for trainer in self.trainers.values():
            trainer.kill()

    # ---- the root ------------------------------------------------------------------------------

    def _decide(self, event: AgentEvent) -> None:
        for effect in self.life.decide(event, self.local_s()):
            self._do_as_root(effect)

    def _do_as_root(self, effect: RootEffect) -> None:
        if not isinstance(effect, Log):
            self._write_as_root(effect)
        elif isinstance(effect.event, RootElected):
            self.world.note(f"{self.incarnation} is root in term {effect.event.term}")

    def _write_as_root(self, write: RootWrite) -> None:
        root = self.root
        late_s, strike = 0.0, _nothing
        if isinstance(write, WritePlan):
            late_s, strike = self.world.strike_root(self)

        def written(answer: TxnResult | Exception) -> None:
            done = answer.succeeded if isinstance(answer, TxnResult) else None
            for event in self.life.root_write_ended(write, root, done):
                self.see(event)

        txn = store_writes.root_write(self.world.spec.job, self.name, write)
        self.session.transact(txn, written, late_s)
        strike()


def _nothing() -> None:
    pass


@carry_out.register(Report)
def _(effect: Report, _: Surroundings, agent: SimulatedAgent) -> None:
    agent.session.report(effect.report)


@carry_out.register(Campaign)
def _(_: Campaign, __: Surroundings, agent: SimulatedAgent) -> None:
    agent.session.campaign()


@carry_out.register(Depose)
def _(effect: Depose, _: Surroundings, agent: SimulatedAgent) -> None:
    agent.session.depose(effect.agent)


@carry_out.register(WatchPeers)
def _(effect: WatchPeers, _: Surroundings, agent: SimulatedAgent) -> None:
    agent.peer_watch.watch(effect)


@carry_out.register(AskDrain)
def _(effect: AskDrain, world: Surroundings, agent: SimulatedAgent) -> None:
    agent.session.transact(store_writes.wish(world.spec.job, effect.wish), lambda _answer: None)


@carry_out.register(StopTrainers)
def _(_: StopTrainers, __: Surroundings, agent: SimulatedAgent) -> None:
    agent.stop_as_told()


@carry_out.register(ParkTrainers)
def _(_: ParkTrainers, __: Surroundings, agent: SimulatedAgent) -> None:
    agent.park_as_told()


@carry_out.register(Exit)
def _(effect: Exit, _: Surroundings, agent: SimulatedAgent) -> None:
    agent.world.note(f"{agent.incarnation} exits with {effect.code} {effect.reason}")
    agent.exited = effect.code
    agent.end()

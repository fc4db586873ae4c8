"""Faults striking: each kind's effect on the simulated world."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from castor_policy.agents import store_writes
from castor_policy.agents.events import LeaveAsked
from castor_policy.agents.plan import Plan
from castor_policy.agents.wish import Wish, WishKind
from castor_policy.store import LeaseLostError, StoreUnavailableError
from castor_sim.explore.earlier_run import leave
from castor_sim.explore.monitor import ISOLATED_S
from castor_sim.explore.network import STORE
from castor_sim.explore.roles import Agent, Host, Trainer
from castor_sim.explore.schedule import EVERYBODY, NO_SPACE, PEERS, RESTORED, Fault
from castor_sim.explore.schedule import STORE as THE_STORE
from castor_sim.explore.script_error import ScriptError
from castor_sim.explore.surroundings import Surroundings

_LAST_RETURNS_S = 5.0
_ASK_AGAIN_S = 0.5
_WORN_S = 1.5
"""A trainer that fails again and again comes so far in each generation."""


class Injector:
    """Carries out a schedule.

    Args:
        world: to strike.
        faults: the schedule.
    """

    def __init__(self, world: Surroundings, faults: Sequence[Fault]) -> None:
        self._world = world
        self.faults = tuple(faults)
        self._waiting: list[Fault] = []
        self._quiet_s = max((fault.time_s for fault in faults), default=0.0)
        self._outages = 0
        self._fullness = 0
        self._ahead = len(faults)
        self.struck: list[tuple[str, str]] = []
        for fault in faults:
            world.after(fault.time_s, self._arm, fault)

    def quiet_since_s(self) -> float:
        """Return when the last fault that has struck is over."""
        return self._quiet_s

    def is_quiet(self) -> bool:
        """Whether no fault is under way or still to come, those that lie in wait aside."""
        return self._ahead == 0 and self._world.now_s > self._quiet_s

    def planned(self, plan: Plan) -> None:
        """Let faults strike that lay in wait for this phase."""
        for fault in [fault for fault in self._waiting if fault.after == plan.phase]:
            self._waiting.remove(fault)
            self._world.after(fault.lag_s, self._strike, fault)

    def strike_root(self, agent: Agent) -> tuple[float, Callable[[], None]]:
        """Return how late this write of the root is to be, and what its agent meets then."""
        fault = next((fault for fault in self._waiting if fault.kind == "root"), None)
        if fault is None:
            return 0.0, lambda: None
        self._waiting.remove(fault)
        return fault.lag_s, partial(self._strike_at, fault, agent)

    def _arm(self, fault: Fault) -> None:
        self._ahead -= 1
        if fault.kind == "earlier":
            self._leave_memory(fault)
        elif fault.after or fault.kind == "root":
            self._waiting.append(fault)
        else:
            self._strike(fault)

    def _leave_memory(self, fault: Fault) -> None:
        hosts = self._world.hosts
        self._world.note(f"FAULT earlier {fault}")
        leave(self._world.spec, hosts, max(1, round(fault.value)))
        if fault.other % 2 == 1:
            hosts[fault.target % len(hosts)].left.clear()
        self.struck.append((fault.kind, self._world.monitor.phase()))

    def _strike(self, fault: Fault) -> None:
        live = self._world.live()
        if live:
            self._strike_at(fault, live[fault.target % len(live)])

    def _strike_at(self, fault: Fault, agent: Agent) -> None:
        self._quiet_s = max(self._quiet_s, self._world.now_s + fault.span_s + fault.lag_s)
        self.struck.append((fault.kind, self._world.monitor.phase()))
        self._world.note(f"FAULT {fault.kind} {agent.incarnation} {fault}")
        match fault.kind:
            case "crash" | "agent" | "pause" | "root":
                self._strike_process(fault, agent)
            case "trainer" | "worn" | "leave" | "hang":
                self._strike_trainer(fault)
            case "twin":
                self._world.start_twin(agent, elsewhere=fault.value == 1)
            case "stuck" | "silent":
                self._hang(fault, agent)
            case "unfit":
                agent.host.lacks_memory = True
            case "flip" | "error":
                self._strike_rank(fault)
            case "net":
                self._cut(fault, agent)
            case "store":
                self._strike_store(fault)
            case "stop" | "drain":
                self._ask(fault, agent)
            case _:
                self._disturb(fault, agent)

    # ---- what is asked for -----------------------------------------------------------------------

    def _ask(self, fault: Fault, agent: Agent) -> None:
        if fault.kind == "stop":
            kind = WishKind.CHECKPOINT if fault.value == 1 else WishKind.STOP
            self._wish(Wish(kind))
            return
        if fault.value == 1:
            agent.later(0.0, agent.see, LeaveAsked(fault.span_s))
        else:
            self._wish(Wish(WishKind.DRAIN, agent.name, agent.incarnation))
        self._world.after(fault.span_s + _LAST_RETURNS_S, self._come_after, agent.name)

    def _come_after(self, name: str) -> None:
        """Bring a machine where the last one has left, or nobody is left to recover."""
        if not self._world.live():
            self._world.start(Host(f"{name}-next", standby=False))

    def _wish(self, wish: Wish) -> None:
        store = self._world.store
        if not store.model.running:
            self._world.after(_ASK_AGAIN_S, self._wish, wish)
            return
        with suppress(StoreUnavailableError):  # it takes nothing: who asks is told so
            txn = store_writes.wish(self._world.spec.job, wish)
            store.apply(lambda model, now_s: model.transact(txn, now_s))

    # ---- processes -----------------------------------------------------------------------------

    def _strike_process(self, fault: Fault, agent: Agent) -> None:
        match fault.kind:
            case "crash":
                for lost in self._row(agent) if fault.value == 1 else [agent]:
                    self._crash(lost, fault.span_s)
            case "agent":
                self._kill(agent, fault.span_s)
            case "pause":
                self._pause(agent, fault.span_s, whole=fault.value == 1, timers=fault.other == 1)
            case _:
                self._strike_writer(fault, agent)

    def _crash(self, agent: Agent, span_s: float) -> None:
        if len(self._world.live()) == 1:
            span_s = span_s or _LAST_RETURNS_S  # or nobody is left to recover
        if self._world.agents[agent.name].host is agent.host:
            self._world.monitor.memory_lost(agent)
        for one in self._world.on(agent.host):
            one.end()
        agent.host.memory.clear()
        agent.host.left.clear()
        agent.host.lives_before_boot = agent.host.lives
        if span_s:
            self._world.after(span_s, self._world.start, agent.host)

    def _row(self, agent: Agent) -> list[Agent]:
        """Return the agents that hold the shard of an agent's machine, itself among them."""
        monitor, rows = self._world.monitor, self._world.spec.replicas
        for row in rows:
            holders = [monitor.agent_at(place) for place in row]
            if holders[0] is agent:
                return [holder for holder in holders if holder is not None and holder.alive]
        return [agent]

    def _kill(self, agent: Agent, span_s: float) -> None:
        agent.end()
        self._world.after(span_s, self._world.start, agent.host)

    def _pause(self, agent: Agent, span_s: float, *, whole: bool, timers: bool) -> None:
        if agent.paused:
            return
        paused = [one for one in self._world.on(agent.host) if not one.paused and whole] or [agent]
        for one in paused:
            one.paused = True
        agent.host.paused = agent.host.paused or whole

        def wake() -> None:
            agent.host.paused = False
            for one in paused:
                if one.alive:
                    one.wake(timers_first=timers)

        self._world.after(span_s, wake)

    def _strike_writer(self, fault: Fault, agent: Agent) -> None:
        if fault.value == 0:
            self._kill(agent, fault.span_s)
        elif fault.value == 1:
            self._crash(agent, fault.span_s)
        elif fault.value == 2:
            self._pause(agent, fault.span_s, whole=True, timers=fault.other == 1)

    def _strike_trainer(self, fault: Fault) -> None:
        trainer = self._trainer(fault.target)
        if trainer is None:
            return
        self._world.monitor.blame.struck(trainer.generation, trainer.rank)
        match fault.kind:
            case "trainer":
                trainer.end(-9)
            case "worn":
                trainer.end(-9)
                if fault.value > 1:
                    again = replace(fault, after="load", lag_s=_WORN_S, value=fault.value - 1)
                    self._waiting.append(again)
            case "leave":
                trainer.leave(said=fault.value == 1)
            case _ if trainer.hung_since_s is None:
                trainer.hung_since_s = self._world.now_s

    def _trainer(self, rank: int) -> Trainer | None:
        wanted = rank % (self._world.spec.machines * self._world.spec.ranks_per_machine)
        found = [
            agent.trainers[wanted]
            for agent in self._world.live()
            if wanted in agent.trainers and agent.trainers[wanted].alive
        ]
        return max(found, key=lambda trainer: trainer.generation, default=None)

    def _strike_rank(self, fault: Fault) -> None:
        spec = self._world.spec
        rank = fault.target % (spec.machines * spec.ranks_per_machine)
        if fault.kind == "error":
            if self._world.script_error is None:
                trainer = self._trainer(rank)
                done = trainer.iteration if trainer is not None else 0
                ahead = 1 + done + max(0, round(fault.value))
                iteration = min(self._world.iterations, ahead)
                after_the_update = fault.other % 2 == 1
                self._world.script_error = ScriptError(rank, iteration, after_the_update)
        elif fault.value == 1:
            self._world.storage.flip(rank)
        else:
            self._flip(fault, rank)

    def _flip(self, fault: Fault, rank: int) -> None:
        spec = self._world.spec
        row = spec.replicas[rank // spec.ranks_per_machine]
        place = row[fault.other % len(row)]
        agent = self._world.monitor.agent_at(place)
        replica = agent.host.memory.get(rank) if agent is not None else None
        if replica is not None and replica.flip() is not None:
            self._world.monitor.flipped(place, rank)

    # ---- the surroundings ----------------------------------------------------------------------

    def _cut(self, fault: Fault, agent: Agent) -> None:
        names = sorted(set(self._world.agents) - {agent.name})
        if fault.other >= 0:
            names = names[fault.other % len(names) :][:1] if names else []
        elif fault.other == THE_STORE:
            names = [STORE]
        elif fault.other == EVERYBODY:
            names.append(STORE)
        else:
            assert fault.other == PEERS
        network = self._world.network
        for name in names:
            for way, ends in ((2, (agent.name, name)), (1, (name, agent.name))):
                if fault.value != way:  # 1: what it gets still comes; 2: what it sends still goes
                    network.cut(*ends)
                    self._world.after(fault.span_s, network.mend, *ends)
        if fault.other == EVERYBODY and fault.value == 0 and fault.span_s > ISOLATED_S:
            moment = agent.moment()
            self._world.after(ISOLATED_S, self._world.monitor.check_isolated, agent, moment)

    def _hang(self, fault: Fault, agent: Agent) -> None:
        until_s = self._world.now_s + (fault.span_s or math.inf)
        if fault.kind == "silent":
            for host in self._world.hosts if fault.value == 1 else [agent.host]:
                host.storage_silent_until_s = until_s
        elif fault.value == 1:
            agent.host.memory_stuck_until_s = until_s
        else:
            agent.host.stop_stuck_until_s = until_s

    def _compact(self, agent: Agent) -> None:
        self._world.store.model.compact(self._world.store.model.revision)
        self._world.store.cut_watches(agent)

    def _hide_storage(self, agent: Agent, span_s: float) -> None:
        self._world.storage.hide(agent.name)
        if span_s:
            self._world.after(span_s, self._world.storage.show, agent.name)

    def _fill_storage(self, span_s: float) -> None:
        self._fullness += 1
        self._world.storage.is_full = True

        def empty() -> None:
            self._fullness -= 1
            self._world.storage.is_full = self._fullness > 0

        self._world.after(span_s, empty)

    def _strike_store(self, fault: Fault) -> None:
        store = self._world.store
        if fault.value == NO_SPACE:
            store.model.fill(full=True)
            self._world.after(fault.span_s, lambda: store.model.fill(full=False))
            return
        self._stop_store(fault.span_s)
        if fault.value:
            store.lose_data(restored=fault.value == RESTORED)

    def _stop_store(self, span_s: float) -> None:
        self._outages += 1
        if self._outages == 1:
            self._world.store.stop()

        def start() -> None:
            self._outages -= 1
            if self._outages == 0:
                self._world.store.start()

        self._world.after(span_s, start)

    def _end_lease(self, agent: Agent, late_s: float) -> None:
        lease, store = agent.lease, self._world.store
        if lease is None or not store.model.running:
            return
        try:
            if late_s < 0:
                store.apply(lambda model, now_s: model.expire(lease, now_s))
            else:
                store.model.delay_expiry(lease, late_s)
                self._world.monitor.names.lease_ends_late(agent.name, late_s)
        except LeaseLostError:
            return

    def _disturb(self, fault: Fault, agent: Agent) -> None:
        network, after = self._world.network, self._world.after
        match fault.kind:
            case "lease":
                self._end_lease(agent, fault.value)
            case "compact":
                self._compact(agent)
            case "mount":
                self._hide_storage(agent, fault.span_s)
            case "full":
                self._fill_storage(fault.span_s)
            case "slow":
                agent.host.slowness = max(1.0, fault.value)

                def calm() -> None:
                    agent.host.slowness = 1.0

                after(fault.span_s, calm)
            case "loss":
                network.set_loss(agent.name, fault.value)
                after(fault.span_s, network.set_loss, agent.name, 0.0)
                self._world.store.cut_watches(agent)
            case "late":
                network.set_late(agent.name, fault.value)
                after(fault.span_s, network.set_late, agent.name, 0.0)
            case _:
                agent.set_clock(max(0.01, fault.value), max(0.0, float(fault.other)))
                after(fault.span_s, agent.set_clock, 1.0, 0.0)

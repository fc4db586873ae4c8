"""Faults striking: each kind's effect on the simulated world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from castor_policy.agents.documents import Plan
from castor_policy.store import LeaseLostError
from castor_sim.explore.network import STORE
from castor_sim.explore.schedule import EVERYBODY, PEERS, Fault
from castor_sim.explore.schedule import STORE as THE_STORE

if TYPE_CHECKING:
    from castor_sim.explore.agent import SimulatedAgent
    from castor_sim.explore.training import Trainer
    from castor_sim.explore.world import World

_LAST_RETURNS_S = 5.0


class Injector:
    """Carries out a schedule.

    Args:
        world: to strike.
        faults: the schedule.
    """

    def __init__(self, world: World, faults: Sequence[Fault]) -> None:
        self._world = world
        self.faults = tuple(faults)
        self._waiting: list[Fault] = []
        self._quiet_s = max((fault.time_s for fault in faults), default=0.0)
        self._outages = 0
        for fault in faults:
            world.after(fault.time_s, self._arm, fault)

    def quiet_since_s(self) -> float:
        """Return when the last fault that has struck is over."""
        return self._quiet_s

    def planned(self, plan: Plan) -> None:
        """Let faults strike that lay in wait for this phase."""
        for fault in [fault for fault in self._waiting if fault.after == plan.phase]:
            self._waiting.remove(fault)
            self._world.after(fault.lag_s, self._strike, fault)

    def strike_root(self, agent: SimulatedAgent) -> tuple[float, Callable[[], None]]:
        """Return how late this write of the root is to be, and what befalls its agent after it."""
        fault = next((fault for fault in self._waiting if fault.kind == "root"), None)
        if fault is None:
            return 0.0, lambda: None
        self._waiting.remove(fault)
        return fault.lag_s, partial(self._strike_at, fault, agent)

    def _arm(self, fault: Fault) -> None:
        if fault.after or fault.kind == "root":
            self._waiting.append(fault)
        else:
            self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        live = self._world.live()
        if live:
            self._strike_at(fault, live[fault.target % len(live)])

    def _strike_at(self, fault: Fault, agent: SimulatedAgent) -> None:
        self._quiet_s = max(self._quiet_s, self._world.now_s + fault.span_s + fault.lag_s)
        self._world.note(f"FAULT {fault.kind} {agent.incarnation} {fault}")
        match fault.kind:
            case "crash":
                self._crash(agent, fault.span_s)
            case "agent":
                self._kill(agent, fault.span_s)
            case "pause":
                self._pause(agent, fault.span_s, whole=fault.value == 1, timers=fault.other == 1)
            case "root":
                self._strike_writer(fault, agent)
            case "trainer" | "hang":
                self._strike_trainer(fault)
            case "flip":
                self._flip(fault)
            case "net":
                self._cut(fault, agent)
            case "store":
                self._stop_store(fault.span_s)
            case "lease":
                self._end_lease(agent, fault.value)
            case _:
                self._disturb(fault, agent)

    # ---- processes -----------------------------------------------------------------------------

    def _crash(self, agent: SimulatedAgent, span_s: float) -> None:
        if len(self._world.live()) == 1:
            span_s = span_s or _LAST_RETURNS_S  # or nobody is left to recover
        self._world.monitor.memory_lost(agent)
        agent.end()
        agent.host.memory.clear()
        agent.host.lives_before_boot = agent.host.lives
        if span_s:
            self._world.after(span_s, self._world.start, agent.host)

    def _kill(self, agent: SimulatedAgent, span_s: float) -> None:
        agent.end()
        self._world.after(span_s, self._world.start, agent.host)

    def _pause(self, agent: SimulatedAgent, span_s: float, *, whole: bool, timers: bool) -> None:
        if agent.paused:
            return
        agent.paused = True
        agent.host.paused = agent.host.paused or whole

        def wake() -> None:
            agent.host.paused = False
            if agent.alive:
                agent.wake(timers_first=timers)

        self._world.after(span_s, wake)

    def _strike_writer(self, fault: Fault, agent: SimulatedAgent) -> None:
        if fault.value == 0:
            self._kill(agent, fault.span_s)
        elif fault.value == 1:
            self._crash(agent, fault.span_s)
        else:
            self._pause(agent, fault.span_s, whole=True, timers=fault.other == 1)

    def _strike_trainer(self, fault: Fault) -> None:
        trainer = self._trainer(fault.target)
        if trainer is None:
            return
        if fault.kind == "trainer":
            trainer.end(-9)
        elif trainer.hung_since_s is None:
            trainer.hung_since_s = self._world.now_s

    def _trainer(self, rank: int) -> Trainer | None:
        wanted = rank % (self._world.shape.machines * self._world.shape.ranks_per_machine)
        found = [
            agent.trainers[wanted]
            for agent in self._world.live()
            if wanted in agent.trainers and agent.trainers[wanted].alive
        ]
        return max(found, key=lambda trainer: trainer.generation, default=None)

    def _flip(self, fault: Fault) -> None:
        spec = self._world.spec
        rank = fault.target % (spec.machines * spec.ranks_per_machine)
        row = spec.replicas[rank // spec.ranks_per_machine]
        place = row[fault.other % len(row)]
        agent = self._world.monitor.agent_at(place)
        replica = agent.host.memory.get(rank) if agent is not None else None
        if replica is not None and replica.flip() is not None:
            self._world.monitor.flipped(place, rank)

    # ---- the surroundings ----------------------------------------------------------------------

    def _cut(self, fault: Fault, agent: SimulatedAgent) -> None:
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
            network.cut(agent.name, name)
            self._world.after(fault.span_s, network.mend, agent.name, name)

    def _stop_store(self, span_s: float) -> None:
        self._outages += 1
        if self._outages == 1:
            self._world.store.stop()

        def start() -> None:
            self._outages -= 1
            if self._outages == 0:
                self._world.store.start()

        self._world.after(span_s, start)

    def _end_lease(self, agent: SimulatedAgent, late_s: float) -> None:
        lease, store = agent.session.lease, self._world.store
        if lease is None or not store.model.running:
            return
        try:
            if late_s < 0:
                store.apply(lambda model, now_s: model.expire(lease, now_s))
            else:
                store.model.delay_expiry(lease, late_s)
        except LeaseLostError:
            return

    def _disturb(self, fault: Fault, agent: SimulatedAgent) -> None:
        network, after = self._world.network, self._world.after
        match fault.kind:
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

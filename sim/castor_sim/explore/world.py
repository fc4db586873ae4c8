"""One run of one schedule: machines, store, network, time, and who watches over them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from castor_policy.agents.job_change import read_plan, read_report
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.life import Journal
from castor_policy.agents.own_report import Sign
from castor_policy.agents.store_keys import (
    agents_prefix,
    plan_key,
    requests_prefix,
    root_key,
    wishes_prefix,
)
from castor_policy.agents.wish import Wish
from castor_policy.checkpoint_memory import FAST, SAVING
from castor_policy.defaults import CHECKPOINT_EVERY
from castor_policy.job_options import (
    DEGRADED,
    WAIT,
    MemoryOptions,
    PersistenceOptions,
    RecoveryOptions,
    TrafficOptions,
)
from castor_policy.membership import WatchLimits
from castor_policy.placement import place
from castor_policy.store import Delete, StoreEvent, Txn
from castor_sim.explore.agent import SimulatedAgent
from castor_sim.explore.clockwork import Clockwork
from castor_sim.explore.group import SimulatedGroup
from castor_sim.explore.inject import Injector
from castor_sim.explore.journals import Journals
from castor_sim.explore.monitor import Monitor
from castor_sim.explore.network import Network
from castor_sim.explore.roles import Agent, Group, Host
from castor_sim.explore.schedule import Fault
from castor_sim.explore.script_error import ScriptError
from castor_sim.explore.storage_model import Storage
from castor_sim.explore.store_server import StoreServer
from castor_sim.explore.surroundings import GroupKey
from castor_sim.explore.truth import Truth

JOB = "explored"
RUN = "00000000000e4910"

SETTLE_S = 240.0
"""The job must end so long after the last fault: three requests for a machine fit in."""

_SERVE_S = (2.0, 8.0)  # the operator brings a machine


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of the explored job.

    Raises:
        ValueError: no placement of this size.
    """

    machines: int = 4
    ranks_per_machine: int = 1
    replicas: int = 2
    standby: int = 1
    iterations: int = 12
    checkpoint_every: int = CHECKPOINT_EVERY
    domains: int = 0
    memory: str = FAST
    redundancy: str = WAIT
    in_place: bool = False

    def __post_init__(self) -> None:
        if min(self.ranks_per_machine, self.iterations, self.checkpoint_every) < 1:
            raise ValueError("give at least 1 rank a machine, 1 iteration and a period of 1")
        if min(self.standby, self.domains) < 0:
            raise ValueError("give at least 0 standbys and 0 failure domains")
        MemoryOptions(mode=self.memory)
        RecoveryOptions(redundancy=self.redundancy)
        place("mixed", self.machines, self.replicas)

    def spec(self) -> JobSpec:
        """Return the job; times are short, so that a run is."""
        placement = place("mixed", self.machines, self.replicas)
        return JobSpec(
            job=JOB,
            machines=self.machines,
            ranks_per_machine=self.ranks_per_machine,
            placement=placement.kind,
            replicas=placement.replicas,
            script="train.py",
            run=RUN,
            traffic=TrafficOptions(checkpoint_every=self.checkpoint_every),
            limits=WatchLimits(lease_s=3.0),
            persistence=PersistenceOptions(tiers=("storage",), every_s=1.0, storage_s=30.0),
            recovery=RecoveryOptions(redundancy=self.redundancy, gather_s=20.0),
            memory=MemoryOptions(mode=self.memory),
        )


_SHAPES = (
    # Most jobs are small: what two ranks or three replicas show, few of them show as well.
    (6, Shape()),
    (2, Shape(standby=0)),
    (2, Shape(standby=2)),
    (3, Shape(machines=2, ranks_per_machine=2)),
    (2, Shape(machines=3, ranks_per_machine=2, standby=0)),
    (2, Shape(machines=2, standby=2)),
    (2, Shape(machines=3, replicas=3)),
    (1, Shape(machines=5, replicas=3)),
    (1, Shape(machines=4, ranks_per_machine=2)),
)

_PERIODS = (1, 1, 1, 1, 2, 3, 5)
"""Most jobs checkpoint every iteration: what is lost then can be told best."""

_DOMAINS = (0, 0, 2)
"""Agents of most jobs do not say what their machines fail with."""


_IN_PLACE = 0.5
"""Share of the jobs whose script goes on without a restart."""


def drawn_shape(seed: int) -> Shape:
    """Return the size of the job that a seed stands for."""
    draw = random.Random(f"castor explore shape {seed}")  # noqa: S311 - a simulation, no secret
    weights = [weight for weight, _ in _SHAPES]
    shape = draw.choices([shape for _, shape in _SHAPES], weights)[0]
    every, domains = draw.choice(_PERIODS), draw.choice(_DOMAINS)
    return replace(
        shape,
        checkpoint_every=every,
        domains=domains,
        memory=draw.choice((FAST, SAVING)),
        redundancy=draw.choice((WAIT, WAIT, DEGRADED)),
        in_place=draw.random() < _IN_PLACE,
    )


class World:
    """Everything around the agents.

    Args:
        shape: of the job.
        seed: of every delay and chance; faults come apart.
        faults: what goes wrong.
        keep_notes: keep a log of what happened, for people.
        journals: gets what every agent takes in; None: nobody wants to know.
    """

    def __init__(
        self,
        shape: Shape,
        seed: int,
        faults: Sequence[Fault],
        *,
        keep_notes: bool = False,
        journals: Journals | None = None,
    ) -> None:
        self.seed = seed
        self.shape = shape
        self.spec = shape.spec()
        self.iterations = shape.iterations
        self.in_place = shape.in_place
        self.notes: list[str] | None = [] if keep_notes else None
        self._journals = journals
        self.script_error: ScriptError | None = None
        self._clock = Clockwork()
        self._draw = random.Random(f"{seed} world")  # noqa: S311 - a simulation, no secret
        self.network = Network()
        self.monitor = Monitor(self, faults)
        self.store = StoreServer(
            JOB, self._clock, self.network, self._store_changed, self.monitor.data_lost
        )
        ranks = shape.machines * shape.ranks_per_machine
        self.run_number = 1
        self.truth = Truth(self.run_number, ranks)
        self.storage = Storage(ranks, self.spec.persistence.keep)
        self.agents: dict[str, Agent] = {}
        self.hosts: list[Host] = []
        self._lives: dict[str, Agent] = {}
        self.meetings = 0
        self._groups: dict[GroupKey, Group] = {}
        self._served: set[str] = set()
        self._named = shape.machines
        self._injector = Injector(self, faults)
        names = [f"node-{n}" for n in range(shape.machines)]
        self.hosts = [Host(name, standby=False) for name in names]
        self.hosts += [Host(f"spare-{number}", standby=True) for number in range(shape.standby)]
        for index, host in enumerate(self.hosts):
            # Neighbours share one: in the order of their names copies would lie together.
            number = index * shape.domains // len(self.hosts)
            host.domain = f"domain-{number}" if shape.domains else ""
        for host in self.hosts:
            self.after(self._draw.uniform(0.0, 0.3), self.start, host)

    # ---- time ----------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return self._clock.now_s

    def after(self, delay_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call back after a time."""
        self._clock.after(delay_s, what, *arguments)

    def run(self) -> None:
        """Run until every agent has ended well.

        Raises:
            Violation: an invariant did not hold, or the job did not end in time.
        """
        monitor, step = self.monitor, self._clock.step
        while not monitor.is_over():
            if self._clock.now_s > self._injector.quiet_since_s() + SETTLE_S:
                monitor.check_time(self._injector.quiet_since_s() + SETTLE_S)
            step()
            monitor.check()
        monitor.check_end()

    def struck(self) -> Sequence[tuple[str, str]]:
        """Return the faults that have struck, and in which phase of the job."""
        return self._injector.struck

    def root_term(self) -> int:
        """Return the term of the root that the store has now; 0 if it has none."""
        found, _ = self.store.model.get_prefix(root_key(JOB), self.now_s)
        return found[0].create_revision if found else 0

    def quiet_since_s(self) -> float:
        """Return when the last fault that has struck is over."""
        return self._injector.quiet_since_s()

    def is_quiet(self) -> bool:
        """Whether every fault is over."""
        return self._injector.is_quiet()

    def note(self, text: str) -> None:
        """Write down what happened, if somebody wants to know."""
        if self.notes is not None:
            self.notes.append(f"{self.now_s:8.3f}  {text}")

    def journal(self, agent: str, incarnation: str) -> Journal | None:
        """Return what gets all that one life of an agent takes in, if somebody wants it."""
        if self._journals is None:
            return None
        return self._journals.of(agent, incarnation, lambda: round(self.now_s * 1e9))

    # ---- agents --------------------------------------------------------------------------------

    def start(self, host: Host) -> None:
        """Start an agent on a machine, for the first time or again."""
        running = self.agents.get(host.name)
        if running is not None and (running.alive or running.exited is not None):
            return
        self.agents[host.name] = self._begin(host)

    def start_twin(self, agent: Agent, *, elsewhere: bool) -> None:
        """Start a second agent of a name, on its machine or on another one."""
        host = agent.host
        if host.paused and not elsewhere:
            return  # a machine that stands still starts nothing
        if elsewhere:
            lives = 100 * sum(host.name == agent.name for host in self.hosts)
            host = Host(agent.name, host.standby, host.domain, lives=lives)
        self._begin(host)

    def _begin(self, host: Host) -> Agent:
        if host not in self.hosts:
            self.hosts.append(host)
        agent = SimulatedAgent(self, host)
        self._lives[agent.incarnation] = agent
        self.note(f"{agent.incarnation} starts")
        agent.start()
        return agent

    def claimed(self, agent: Agent) -> None:
        """Take in that an agent has its name: it is the one of that name from now on."""
        before = self.agents[agent.name]
        if before is agent:
            return
        if before.host is not agent.host:
            self.monitor.memory_lost(agent)
        self.agents[agent.name] = agent

    def sign_of(self, incarnation: str, asker: Agent) -> Sign:
        """Return what an agent knows of another life of its name.

        It sees the processes of its own machine since that came up; any other life may answer it.
        """
        life, host = self._lives[incarnation], asker.host
        number = int(incarnation.rpartition(".")[2])
        if life.host is host and number > host.lives_before_boot:
            return Sign.ALIVE if life.alive else Sign.DEAD
        silent = not life.alive or life.paused or life.host.paused
        return Sign.UNKNOWN if silent else Sign.ALIVE

    def on(self, host: Host) -> list[Agent]:
        """Return the agents that live on a machine."""
        return [agent for agent in self.live() if agent.host is host]

    def live(self) -> list[Agent]:
        """Return the agents that live, by name."""
        return [agent for _, agent in sorted(self._lives.items()) if agent.alive]

    def at(self, address: str) -> Agent | None:
        """Return the live agent at an address: its incarnation's."""
        agent = self._lives.get(address)
        return agent if agent is not None and agent.alive else None

    def group(self, key: GroupKey) -> Group:
        """Return the trainers that meet at one place in one generation."""
        if key not in self._groups:
            self._groups[key] = SimulatedGroup(self, key)
        return self._groups[key]

    def strike_root(self, agent: Agent) -> tuple[float, Callable[[], None]]:
        """Return how late the root's write is to be, and what its agent meets then."""
        return self._injector.strike_root(agent)

    # ---- the store's changes -------------------------------------------------------------------

    def _store_changed(self, events: Sequence[StoreEvent]) -> None:
        """See what was written: plans for the monitor, requests for the operator."""
        for event in events:
            if event.key == plan_key(JOB) and event.value is not None:
                plan = read_plan(event.value)
                self.note(
                    f"plan: generation {plan.generation} {plan.phase} {plan.iteration} "
                    f"{plan.tier} term {plan.term} {plan.incarnations} {plan.reason}"
                )
                self.monitor.planned(plan)
                self._injector.planned(plan)
            elif event.key.startswith(agents_prefix(JOB)):
                if self.notes is not None:
                    self.note(_told(event))
                told = "" if event.value is None else read_report(event.value).incarnation
                self.monitor.names.reported(event.key.removeprefix(agents_prefix(JOB)), told)
            elif event.key.startswith(wishes_prefix(JOB)):
                self.note(f"wish: {event.key} {event.value or 'taken out'}")
                wish = None if event.value is None else Wish.from_json(event.value)
                self.monitor.wished(event.key, wish, self.storage.whole())
            elif event.key.startswith(requests_prefix(JOB)) and event.value is not None:
                self._ask_operator(event.key)

    def _ask_operator(self, key: str) -> None:
        if key not in self._served:
            self._served.add(key)
            self.after(self._draw.uniform(*_SERVE_S), self._serve, key)

    def _serve(self, key: str) -> None:
        """Bring the machine that was asked for, as the operator does."""
        if not self.store.model.running:
            self.after(1.0, self._serve, key)
            return
        self._served.discard(key)
        self.store.apply(lambda model, now_s: model.transact(Txn((), (Delete(key),)), now_s))
        name = f"node-{self._named}"
        self._named += 1
        self.start(Host(name, standby=False))


def _told(event: StoreEvent) -> str:
    if event.value is None:
        return f"gone: {event.key}"
    report = read_report(event.value)
    held = "".join(f" {rank}:{list(held)}" for rank, held in sorted(report.holdings.items()))
    return (
        f"{report.incarnation} {report.state} in generation {report.generation}"
        f"{f' at {report.iteration}' if report.iteration else ''}"
        f"{', redundant' if report.redundant else ''}"
        f"{f', holds{held}' if held else ''}{f': {report.reason}' if report.reason else ''}"
    )

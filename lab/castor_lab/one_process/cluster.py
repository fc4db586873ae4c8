"""The machines of a job in one process: starts agents, replaces them, breaks what it is told to.

A failure is a callable that is given to `at` with a rank and a step; it happens once, in that
rank's thread, before that step's update. What fails in an agent is done in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from castor_lab.one_process.memory_group import Meeting
from castor_lab.one_process.program import program
from castor_lab.one_process.thread_host import ThreadHost
from castor_lab.one_process.thread_trainer import TrainerThread
from castor_policy.agents import store_writes
from castor_policy.agents.admission import Software
from castor_policy.agents.exit_codes import BEGIN_AGAIN
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.agents.resuming import resume, resumed
from castor_policy.agents.store_keys import agents_prefix, plan_key, root_key
from castor_policy.agents.wish import Wish
from castor_records.event_log import merge
from castor_records.events.event import Entry, Event, generation_of
from castor_runtime.agent.admission import Admitted
from castor_runtime.agent.driver import Agent
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.script_files import ScriptFiles
from castor_runtime.arena import SHARED_MEMORY
from castor_runtime.launcher.final_state import final_state
from castor_runtime.transport import JobSecret
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

PATIENCE_S = 120.0
"""A run that takes longer hangs."""

_LOOK_S = 0.005
_STORE_POLL_S = 0.002

Failure = Callable[[TrainerThread], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        codes: of each agent's last life, by name; None for one that was lost for good.
        iteration: that all ranks ended at; None if they did not.
        state: SHA-256 of the final state; None if there is none.
        trained: for each rank, how often it ended which iteration.
        events: of all agents and trainers, by time.
        left: names of shared memory that the job left, and keys of its agents in the store.
    """

    codes: dict[str, int | None]
    iteration: int | None
    state: str | None
    trained: dict[int, Counter[int]]
    events: list[Entry[Event]]
    left: tuple[str, ...]

    @property
    def redone(self) -> int:
        """Iterations that rank 0 had ended and had to do again, counted each time."""
        return sum(self.trained[0].values()) - len(self.trained[0])


@dataclass(slots=True)
class _Life:
    agent: Agent
    store: ModelStore
    task: asyncio.Task[int]
    lost: bool = False
    comes_back: bool = True


@dataclass(slots=True)
class _Machine:
    name: str
    standby: bool
    folder: Path
    life: _Life | None = None
    code: int | None = None


class Cluster:
    """A job and its machines.

    Args:
        spec: the job.
        folder: where the agents' folders go.
        iterations: how many it trains.
        elements: size of each rank's state, in float32 numbers; it has a momentum beside.
        standby: machines that fill in.
        metrics: each agent serves its metrics, at a port of its own.
    """

    def __init__(
        self,
        spec: JobSpec,
        folder: Path,
        *,
        iterations: int,
        elements: int = 3000,
        standby: int = 0,
        metrics: bool = False,
    ) -> None:
        self.spec = spec
        self._metrics_port = 0 if metrics else None
        self.model = StoreModel()
        self.trained: dict[int, Counter[int]] = {
            rank: Counter() for rank in range(spec.machines * spec.ranks_per_machine)
        }
        self._iterations = iterations
        self._secret = JobSecret(secrets.token_bytes(32))
        self._train = program(iterations, elements, self._at_step, self._at_load, self._ended)
        self._meetings: dict[str, Meeting] = {}
        self._failures: dict[tuple[int, int], list[Failure]] = {}
        self._loading: dict[tuple[int, int], list[Failure]] = {}
        self._moments: dict[tuple[type[Event], int], Callable[[], object]] = {}
        self._wrong: list[AssertionError] = []
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop
        self.machines = [
            _Machine(f"node-{number}", number >= spec.machines, folder / f"node-{number}")
            for number in range(spec.machines + standby)
        ]

    # ---- what is to fail ------------------------------------------------------------------------

    def at(self, rank: int, step: int, failure: Failure) -> None:
        """Have something fail in a rank's thread before it makes its update number `step` + 1."""
        self._failures.setdefault((rank, step), []).append(failure)

    def at_load(self, rank: int, generation: int, failure: Failure) -> None:
        """Have something fail before the trainer of a rank loads in that generation."""
        self._loading.setdefault((rank, generation), []).append(failure)

    def when(self, moment: type[Event], generation: int, what: Callable[[], object]) -> None:
        """Have something done once, in the event loop, when an agent logs such an event."""
        self._moments[moment, generation] = what

    def lose(
        self,
        name: str,
        *,
        memory: bool = False,
        comes_back: bool = True,
        silently: bool = False,
    ) -> None:
        """Lose an agent and its trainers now; call it in the event loop.

        Args:
            name: of the agent.
            memory: its checkpoint memory is lost too.
            comes_back: another life of it is started.
            silently: its lease is left to expire.
        """
        machine = self._named(name)
        life = machine.life
        if life is None or life.lost:
            return
        life.lost, life.comes_back = True, comes_back
        if silently:
            # First of all: nothing of the agent's end is to reach the store.
            self._closing = self._loop.create_task(life.store.close())
        life.task.cancel()
        if memory:
            life.task.add_done_callback(lambda _: self._remove_memory(name))

    def in_loop(self, what: Callable[[], object]) -> None:
        """Have something done in the event loop; for a trainer's thread. Waits until it is done."""
        done = threading.Event()

        def do() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(do)
        if not done.wait(PATIENCE_S):
            raise TimeoutError("the event loop stands")

    def stop_store(self, seconds: float) -> None:
        """Make the store unreachable for a while; call it in the event loop."""
        self.model.stop(time.monotonic())
        self._loop.call_later(seconds, lambda: self.model.start(time.monotonic()))

    def wipe_store(self) -> None:
        """Have the store come back without any data, as another one; call it in the event loop."""
        self.model.lose_data(time.monotonic(), other=True)

    def cut_off(self, name: str, *, is_cut: bool = True) -> None:
        """Let an agent not reach the store, or let it again; its trainers go on."""
        life = self._named(name).life
        assert life is not None, "it was started"
        life.store.is_cut = is_cut

    def ask(self, kind: str, name: str = "") -> None:
        """Put into the store what a job's user asks for; call it in the event loop.

        Args:
            kind: a `WishKind`.
            name: of the agent that is to be drained.
        """
        incarnation = self.agent(name).incarnation if name else ""
        wish = store_writes.wish(self.spec.job, Wish(kind, name, incarnation))
        self.model.transact(wish, time.monotonic())

    def resume(self) -> None:
        """Make a job that has ended runnable again, once `run` has returned: then `run` it."""
        key = plan_key(self.spec.job)
        (found,), _ = self.model.get_prefix(key, time.monotonic())
        self.spec, plan = resumed(self.spec, Plan.from_json(found.value))
        txn = resume(self.spec, plan, found.mod_revision, ())
        assert self.model.transact(txn, time.monotonic()).succeeded, "nobody else writes it"

    def agent_of(self, machine: int) -> Agent:
        """Return the agent that fills a place by the newest plan."""
        key = plan_key(self.spec.job)
        (found,), _ = self.model.get_prefix(key, time.monotonic())
        return self.agent(Plan.from_json(found.value).agents[machine])

    def agent(self, name: str) -> Agent:
        """Return the newest life of an agent."""
        life = self._named(name).life
        assert life is not None, "it was started"
        return life.agent

    # ---- the run --------------------------------------------------------------------------------

    def root(self) -> str:
        """Return the agent that is root."""
        (found,), _ = self.model.get_prefix(root_key(self.spec.job), time.monotonic())
        return found.value

    def run(self) -> Outcome:
        """Train to the end.

        Raises:
            TimeoutError: it did not come to an end.
            AssertionError: what was to fail found something wrong.
        """
        asyncio.run(self._run())
        for error in self._wrong:
            raise error
        finals = []
        for machine in self.machines:
            with contextlib.suppress(FileNotFoundError):
                finals.append(json.loads((machine.folder / "final.json").read_text()))
        iteration, state = final_state(finals, len(self.trained))
        logs = [machine.folder / "events.jsonl" for machine in self.machines]
        events = merge(log for log in logs if log.exists())
        # As it stands: nobody is to wait for the lease of an agent that has ended by itself.
        keys, _ = self.model.get_prefix(agents_prefix(self.spec.job), self.model.now_s)
        left = (*self._memory_left(), *(found.key for found in keys))
        codes = {machine.name: machine.code for machine in self.machines}
        return Outcome(codes, iteration, state, self.trained, events, left)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(self._keep(machine) for machine in self.machines))

    async def _keep(self, machine: _Machine) -> None:
        """Start the machine's agent, and again for as long as it is to come back."""
        while True:
            machine.life = life = self._start(machine)
            try:
                machine.code = await life.task
            except asyncio.CancelledError:
                if not life.lost:
                    raise
                machine.code = None
            if life.lost and not life.comes_back:
                return
            if not life.lost and machine.code != BEGIN_AGAIN:
                return
            while self._has_report(machine.name):  # a silent one's lease has yet to expire
                await asyncio.sleep(_LOOK_S)

    def _start(self, machine: _Machine) -> _Life:
        store = ModelStore(self.model, time.monotonic, poll_s=_STORE_POLL_S)
        files = ScriptFiles(self.spec.script, {self.spec.script: b""})
        options = AgentOptions(
            machine.name,
            self.spec.job,
            "",
            machine.folder,
            standby=machine.standby,
            metrics_port=self._metrics_port,
        )
        admitted = Admitted(self.spec, machine.name, self._secret, files, Software(machine.name))
        agent = Agent(options, admitted, store, ThreadHost(self._meeting, self._train))
        self._watch(agent._log)
        return _Life(agent, store, asyncio.create_task(agent.run()))

    def _watch(self, log: EventLog) -> None:
        write = log.write

        def written(event: Event, realtime_ns: int | None = None) -> None:
            write(event, realtime_ns)
            what = self._moments.pop((type(event), generation_of(event) or 0), None)
            if what is not None:
                self._loop.call_soon(what)

        log.write = written  # type: ignore[method-assign]  # nobody else need know of it

    def _meeting(self, place: str) -> Meeting:
        return self._meetings.setdefault(place, Meeting(len(self.trained)))

    def _named(self, name: str) -> _Machine:
        return next(machine for machine in self.machines if machine.name == name)

    def _has_report(self, name: str) -> bool:
        now_s = time.monotonic()
        self.model.advance(now_s)
        key = agents_prefix(self.spec.job) + name
        return self.model.running and bool(self.model.get_prefix(key, now_s)[0])

    # ---- in the trainers' threads ---------------------------------------------------------------

    def _at_step(self, trainer: TrainerThread, step: int) -> None:
        rank = trainer.settings.rank
        with self._lock:
            failures = self._failures.pop((rank, step), [])
        try:
            for failure in failures:
                failure(trainer)
        except AssertionError as error:  # a test's own, which a recovery would hide
            self._wrong.append(error)
            raise
        trainer.go_on()

    def _ended(self, trainer: TrainerThread, iteration: int) -> None:
        self.trained[trainer.settings.rank][iteration] += 1

    def _at_load(self, trainer: TrainerThread) -> None:
        with self._lock:
            key = (trainer.settings.rank, trainer.settings.generation)
            failures = self._loading.pop(key, [])
        for failure in failures:
            failure(trainer)

    # ---- memory ---------------------------------------------------------------------------------

    def remove_memory(self) -> None:
        """Remove what the job has left in shared memory, be it of a test that failed."""
        for name in self._memory_left():
            (SHARED_MEMORY / name).unlink()

    def _memory_left(self) -> list[str]:
        return [path.name for path in SHARED_MEMORY.glob(f"castor-{self.spec.job}[.-]*")]

    def _remove_memory(self, name: str) -> None:
        for path in SHARED_MEMORY.glob(f"castor-{self.spec.job}-*{name}-r*"):
            path.unlink(missing_ok=True)

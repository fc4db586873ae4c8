"""The agent's event loop: events into the shared state machines, their effects into the world.

Events are taken one after the other, and what the worker decides is carried out before the next
(`castor_runtime.agent.worker_effects`). The root decides beside that, on the same events in the
same order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

from castor_configs.atomic import write_text
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import Exit, Log, RootWrite
from castor_policy.agents.events import TICK_S, LeaveAsked, StoreTrouble, Tick
from castor_policy.agents.exit_codes import BEGIN_AGAIN, DO_NOT_REQUEUE, REFUSED
from castor_policy.agents.lease_keeping import unanswered
from castor_policy.agents.life import AgentLife
from castor_policy.agents.office import Tenure
from castor_policy.agents.own_report import Sign
from castor_policy.agents.patience import serves
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.root import Root
from castor_policy.agents.store_keys import layout_prefix
from castor_policy.agents.worker import Worker
from castor_policy.store import Store, StoreFullError, StoreUnavailableError
from castor_runtime.agent.admission import Admitted
from castor_runtime.agent.clock_watch import watch_clock
from castor_runtime.agent.event_log import EventLog, put_other_run_away
from castor_runtime.agent.job_making import run_started
from castor_runtime.agent.journal_file import JournalFile
from castor_runtime.agent.life import own_life, sign_of
from castor_runtime.agent.machine import Machine
from castor_runtime.agent.memory import CheckpointMemory
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.own_account import OwnAccount
from castor_runtime.agent.reading import read_agent
from castor_runtime.agent.session import StoreSeen, StoreSession
from castor_runtime.agent.trainer_host import TrainerHost
from castor_runtime.agent.worker_effects import PING_TIMEOUT_S, WorkerEffects
from castor_runtime.arena.leftovers import NEXT_STEPS, describe_kept, kept_runs
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.metrics import AgentMetrics, Readings
from castor_runtime.ports import Ports, kernel_range
from castor_runtime.transport import PeerClient, PeerError, PeerServer


def _now_s() -> float:
    """Return the steady clock, in whole microseconds: a journal has no need of more."""
    return round(time.monotonic(), 6)


def _say(text: str) -> None:
    sys.stderr.write(f"castor: {text}\n")


class Agent:
    """One life of one agent.

    Args:
        options: how it was started.
        admitted: the job, and that this agent may take part in it.
        store: of the job.
        host: runs its trainers.
    """

    def __init__(
        self,
        options: AgentOptions,
        admitted: Admitted,
        store: Store,
        host: TrainerHost,
    ) -> None:
        spec, credentials = admitted.spec, admitted.credentials
        self._options = options
        self._spec = spec
        self._admitted = admitted
        self._host = host
        self.incarnation = secrets.token_hex(4)
        self._events: asyncio.Queue[StoreSeen] = asyncio.Queue()
        self._to_decide: asyncio.Queue[StoreSeen] = asyncio.Queue()
        # First: where another run of this name lives, nothing is touched.
        self._memory = CheckpointMemory(
            spec, options.name, home=options.folder, comes_again=not options.under_launcher
        )
        self._left = self._memory.left()
        put_other_run_away(options.folder, spec.run)
        self._metrics = AgentMetrics(
            spec, options.name, options.listen, options.metrics_port, self._readings, _say
        )
        self._log = EventLog(
            options.folder / "events.jsonl", spec.started_ns, also_tell=self._metrics.tell
        )
        self._account = OwnAccount(options, spec, self._log, store, _say)
        self._journal = JournalFile(options.folder, self.incarnation, _say)
        self._client = PeerClient(credentials, spec.run, own=options.listen)
        self._session = StoreSession(
            store,
            spec,
            options.name,
            self._see,
            serves=self._serves,
            believes=admitted.believes,
        )
        self._server = PeerServer(
            options.listen,
            Ports.parse(options.ports),
            credentials=credentials,
            run=spec.run,
            source=self._memory,
            status=self._status,
            told=self._account.told,
        )
        self._machine: Machine
        self._effects: WorkerEffects
        self._born = own_life()
        self._life: AgentLife | None = None
        self._claimed = False
        self._exit: Exit | None = None
        self._is_leaving = False
        self._taking_since_s: float | None = None
        self._written: dict[str, Any] = {}
        self._beside = BackgroundTasks(lambda why: self._see(StoreTrouble("task", why)))

    def tell_beginning(self) -> None:
        """Log that the job has begun: this agent has made it, and there is no launcher."""
        self._log.write(run_started(self._spec), self._spec.started_ns)

    async def run(self) -> int:
        """Serve until the job ends; return the exit code.

        Raises:
            InputError: another agent of this name is alive, or no port is free.
        """
        self._say_what_was_here()
        address = await self._server.start()
        if self._options.ports:
            _say(
                f"listens at {address}; gloo and NCCL will at ports of {kernel_range()} "
                "(net.ipv4.ip_local_port_range)"
            )
        worker = Worker(
            self._spec,
            self._options.name,
            self.incarnation,
            address,
            self._options.standby,
            _now_s(),
            left=self._left.holdings,
            left_generation=self._left.generation,
        )
        tenure = partial(Tenure.seen_in, self._session.view)
        self._life = AgentLife(worker, tenure, journal=self._journal)
        self._metrics.start()
        self._session.open()
        try:
            # In a store that knows nothing of the job yet; before anybody counts on this agent.
            for rank, layout in sorted(self._left.layouts.items()):
                key = layout_prefix(self._spec.job) + str(rank)
                await self._session.write_once(key, layout.to_json())
            await self._session.claim(self._stamped(worker.report), self._sign_of, _say)
            self._claimed = True
            return await self._serve()
        finally:
            await self._metrics.close()
            self._memory.close(unlink=False)  # for who was refused; else it is closed already
            await self._server.close()
            await self._session.close()
            self._log.close()
            self._journal.close()

    async def _serve(self) -> int:
        """Serve under a name that is this agent's alone: nothing here was anybody else's."""
        self._machine = Machine(
            self._spec,
            self._options,
            self._memory,
            self._host,
            self._session,
            self._client,
            self._log,
            self._see,
        )
        self._effects = WorkerEffects(
            self._machine,
            self._session,
            self._client,
            self._beside,
            self._stamped,
            self._tell,
            self._end,
            self._see,
        )
        ticking = asyncio.create_task(self._tick())
        watching = asyncio.create_task(
            watch_clock(self._options.name, self._plan, self._client, self._log)
        )
        telling = asyncio.create_task(self._account.keep_left())
        deciding = asyncio.create_task(self._decide())
        deciding.add_done_callback(lambda _: self._events.put_nowait(Tick()))
        try:
            await self._machine.link.open()
            self._host.preload(self._admitted.files, self._spec.persistence.tiers)
            while self._exit is None:
                await self._take(await self._events.get())
                self._write_record()
                if deciding.done():
                    deciding.result()  # it ends only by an error
            if self._exit.code and self._exit.reason:
                sys.stderr.write(f"castor: {self._exit.reason}\n")
            return self._exit.code
        finally:
            for task in (ticking, watching, telling):
                task.cancel()
            self._effects.close()
            # Of the job's end the root may have yet to tell.
            while not (deciding.done() or self._to_decide.empty()):
                self._decide_on(self._to_decide.get_nowait())
            deciding.cancel()
            # Whoever has taken the name has the control block too.
            taken = self._exit is not None and self._exit.code == REFUSED
            await self._machine.close(self._settled_memory, unlink_control=not taken)
            if not taken:
                await self._account.leave()

    def _settled_memory(self) -> bool:
        """Whether nobody needs the memory any more; what a job that gave up leaves is marked.

        An agent that ends alone, however it is told to, leaves its memory to its next life.
        """
        code = None if self._exit is None else self._exit.code
        if code in (BEGIN_AGAIN, REFUSED):
            return False
        if code == DO_NOT_REQUEUE:
            return True
        plan = self._plan()
        match None if plan is None else plan.phase:
            case Phase.FINISHED | Phase.STOPPED:
                return True
            case Phase.FAILED:
                assert plan is not None, "it has a phase"
                kept = self._memory.keep(plan.reason)
                if kept:
                    _say(f"checkpoint memory is kept on this machine; {NEXT_STEPS}")
                return not kept
            case _:
                return False

    def _say_what_was_here(self) -> None:
        for name in self._memory.removed:
            _say(f"removed {name} from shared memory: no process of its run is alive")
        for kept in kept_runs():
            if kept.job == self._spec.job and kept.run != self._spec.run:
                _say(describe_kept(kept))

    def _stamped(self, report: AgentReport) -> AgentReport:
        """Return the worker's report with what only the driver knows."""
        return replace(
            report,
            memory_bytes=self._memory.memory_bytes,
            life=self._born,
            proof=self._admitted.proof(report.incarnation, report.address),
            domain=self._options.domain,
            script=self._admitted.software.digest,
            versions=self._admitted.software.versions,
        )

    async def _sign_of(self, holder: AgentReport) -> Sign:
        """Say what is known of the life that holds this agent's name."""
        sign = sign_of(holder.life)
        if sign is not Sign.UNKNOWN:
            return sign
        with contextlib.suppress(PeerError):
            answer = await self._client.ping(holder.address, PING_TIMEOUT_S)
            if answer.get("incarnation") == holder.incarnation:
                return Sign.ALIVE
        return Sign.UNKNOWN

    def forks_lost(self) -> None:
        """End: the trainers died with their fork server, and only a new agent has a new one."""
        self._end(Exit(BEGIN_AGAIN, "the process that trainers are forked from died"))
        self._events.put_nowait(Tick())

    def _readings(self) -> Readings:
        life, claimed = self._life, self._claimed
        return read_agent(self._options, self._spec, self._memory, life, claimed=claimed)

    def leave(self, patience_s: float) -> bool:
        """Have this machine drained, and end; False if it is asked again, or has no name yet."""
        if self._is_leaving or self._life is None:
            return False
        self._is_leaving = True
        _say(f"told to go: drains this machine, for {patience_s:g} s at most")
        self._see(LeaveAsked(patience_s))
        return True

    def _end(self, how: Exit) -> None:
        self._exit = how

    def _plan(self) -> Plan | None:
        return self._life.worker.plan if self._life is not None else None

    def _status(self) -> dict[str, Any]:
        """Return what a ping answers."""
        plan = self._plan()
        generation = plan.generation if plan is not None else 0
        return {
            "agent": self._options.name,
            "incarnation": self.incarnation,
            "generation": generation,
        }

    # ---- events --------------------------------------------------------------------------------

    def _see(self, event: StoreSeen) -> None:
        """Have both take an event in: what holds the worker up does not keep the root waiting."""
        self._metrics.see(event)
        self._to_decide.put_nowait(event)
        self._events.put_nowait(event)

    async def _decide(self) -> None:
        assert self._life is not None
        while True:
            for write in self._decide_on(await self._to_decide.get()):
                self._beside.spawn(self._write_as_root(write, self._life.root))

    def _decide_on(self, event: StoreSeen) -> list[RootWrite]:
        """Have the root take an event in, and tell what it tells; return what it writes."""
        assert self._life is not None
        at_s = round((time.time_ns() - self._spec.started_ns) / 1e9, 6)
        writes: list[RootWrite] = []
        for effect in self._life.decide(event, _now_s(), at_s):
            if isinstance(effect, Log):
                self._tell(effect)
                self._account.root_told()
            else:
                writes.append(effect)
        return writes

    def _tell(self, told: Log) -> None:
        at_ns = None if told.at_s is None else self._spec.started_ns + round(told.at_s * 1e9)
        self._log.write(told.event, at_ns)

    async def _take(self, event: StoreSeen) -> None:
        assert self._life is not None
        self._taking_since_s = now_s = _now_s()
        for effect in self._life.obey(event, now_s):
            await self._effects.carry_out(effect)
        self._taking_since_s = None
        # What was left may yet be needed: nothing else is made in its place.
        if isinstance(event, Tick) and self._life.worker.machine is None and self._memory.is_empty:
            self._machine.holding.make_ready()

    def _serves(self) -> bool:
        """Whether events are taken: none is stuck for longer than a machine may take to gather."""
        since_s = self._taking_since_s
        return since_s is None or serves(self._spec, time.monotonic() - since_s)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._see(Tick())

    # ---- what the root writes --------------------------------------------------------------------

    async def _write_as_root(self, write: RootWrite, root: Root | None) -> None:
        assert self._life is not None
        done: bool | None = False
        try:
            done = await self._session.write_as_root(write)
        except StoreFullError as error:
            for told in unanswered(error):
                self._see(told)
        except StoreUnavailableError:
            done = None
        finally:  # whatever came of it: the root must decide again
            for event in self._life.root_write_ended(write, root, done):
                self._see(event)

    def _write_record(self) -> None:
        """Keep agent.json true: operators and the fault injector find processes by it."""
        record = {
            "name": self._options.name,
            "incarnation": self.incarnation,
            "run": self._spec.run,
            **self._machine.pids(),
            "metrics": self._metrics.address,
        }
        if record != self._written:
            self._written = record
            write_text(self._options.folder / "agent.json", json.dumps(record, indent=1))

"""One run from its first process to its last: what `castor train` does once all is checked."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from castor_policy.agents.admission import Refusal
from castor_policy.agents.exit_codes import GIVEN_UP
from castor_policy.store import StoreUnavailableError
from castor_records.events.training import IterationEnded
from castor_runtime.agent.job_making import run_started
from castor_runtime.agent.options import AgentOptions
from castor_runtime.arena.job_lock import JobLock
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.fork_server_link import ForkServerError
from castor_runtime.launcher.agent_fork_link import (
    AgentExit,
    AgentForkLink,
    inherited_environment,
)
from castor_runtime.launcher.agent_fork_server import AGENT_MAIN, PRELOAD
from castor_runtime.launcher.control import ControlServer
from castor_runtime.launcher.domain_call import agents_wanted, placed_by_agents
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.kept_memory import KeptMemory, agents_to_resume, settle
from castor_runtime.launcher.live_log import LiveLog
from castor_runtime.launcher.machine_requests import MachineRequests
from castor_runtime.launcher.observer import LiveRun, Observer
from castor_runtime.launcher.own_etcd import OwnEtcd
from castor_runtime.launcher.result_file import Outcome
from castor_runtime.launcher.run_end import GRACE_S, RunEnd
from castor_runtime.launcher.run_folder import RunFolder
from castor_runtime.launcher.run_record import run_record
from castor_runtime.launcher.screen import Screen
from castor_runtime.launcher.shared_gpus import SharedGpus
from castor_runtime.launcher.site import Site, ThisMachine
from castor_runtime.launcher.stored_job import StoredJob
from castor_runtime.launcher.supervisor import Supervisor
from castor_runtime.launcher.train_options import EMBEDDED, TrainOptions
from castor_runtime.launcher.what_was_left import what_was_left
from castor_runtime.operators import LOCAL
from castor_runtime.operators.protocol import JobToJoin
from castor_runtime.stores import EtcdStore, open_store
from castor_runtime.stores.versions import fault_of
from castor_runtime.transport import JobSecret

_TABLE_EVERY_S: Final = 0.25


class TrainingRun:
    """Starts and supervises one run.

    Args:
        options: what to run.
        console: where progress is shown.
        site: where its agents run; None for this machine.
        observer: who watches it; None for nobody.
        quiet: show only failures.
        agent_main: what an agent process runs.
        preload: what the fork server imports first.
    """

    def __init__(
        self,
        options: TrainOptions,
        console: Console,
        *,
        site: Site | None = None,
        observer: Observer | None = None,
        quiet: bool = False,
        agent_main: str = AGENT_MAIN,
        preload: str = PRELOAD,
    ) -> None:
        self.options = options
        self._site = site or ThisMachine()
        if options.local_agents:
            self._site = SharedGpus(self._site, options.spec.ranks_per_machine)
        self._observer = observer or Observer()
        self.spec = options.spec
        if not options.resume:
            self.spec = replace(self.spec, run=secrets.token_hex(8), started_ns=time.time_ns())
        self._domains = {f"node-{n}": name for n, name in enumerate(options.domains)}
        self.folder = RunFolder(options.out)
        self.imported_s = 0.0
        self.kept: KeptMemory | None = None
        """What is kept of a run that has ended otherwise than well; None for nothing."""
        self._screen = Screen(console, self.spec.ranks_per_machine, quiet=quiet)
        self._entries = (agent_main, preload)
        self._log = LiveLog(self.folder, self._screen, self.spec.started_ns)
        self._reached = 0
        self._refused: dict[str, Refusal] = {}
        self._complete = 0
        self._generation = 0
        self._tasks = BackgroundTasks()
        self._interrupted = 0
        self._table_at_s = 0.0
        # Made in `run`, in this order.
        self._store: EtcdStore
        self._store_url = ""
        self._store_version = ""
        self._job: StoredJob
        self._forks: AgentForkLink
        self._supervisor: Supervisor
        self._requests: MachineRequests
        self._end: RunEnd

    async def run(self) -> Outcome:
        """Run to the end; whatever comes, no process is left behind, and no memory but `kept`.

        Raises:
            InputError: the folder, the store or the job cannot be used, or another run of this
                name lives on this machine; that one is not touched.
        """
        outcome, home = Outcome(""), self.folder.path.resolve()
        lock = JobLock(
            self.spec.job,
            self.spec.run,
            home=home,
            comes_again=not self.options.local_agents,
        )
        try:
            names = self._prepare()
            async with AsyncExitStack() as stack:
                self._catch_signals(stack)
                try:
                    await self._start(stack, lock, names)
                    outcome = await self._supervise()
                except (ForkServerError, StoreUnavailableError) as error:
                    outcome = Outcome("failed", str(error), GIVEN_UP)
            return outcome
        finally:
            # All that used the memory are gone, but for agents that are not the launcher's.
            elsewhere = 0 if self.options.local_agents else self._complete
            lock.close()
            self.kept = settle(
                self.spec, home, outcome.outcome, outcome.reason, elsewhere=elsewhere
            )
            self._screen.close()

    def _prepare(self) -> list[str]:
        """Have the run folder ready; return the names of the agents to start."""
        if not self.options.resume:
            self.folder.prepare(self.options.job_file, overwrite=self.options.overwrite)
            return [f"node-{machine}" for machine in range(self.spec.machines)]
        names: list[str] = []
        if self.options.local_agents:
            self._complete, names = agents_to_resume(self.spec)
        self.folder.prepare_to_resume()
        self._reached = self._complete
        resumes = max(self.spec.resumes, self._log.take_in_past())
        self.spec = replace(self.spec, resumes=resumes)
        return names

    def _catch_signals(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt, number)
            stack.callback(loop.remove_signal_handler, number)

    def _interrupt(self, number: signal.Signals) -> None:
        self._interrupted = number

    async def _start(self, stack: AsyncExitStack, lock: JobLock, names: list[str]) -> None:
        for line in await what_was_left(self.spec, lock):
            self._log.say(line)
        self._log.open()
        stack.callback(self._log.close)
        self._write_run()
        self._take_secret()
        await self._open_agents(stack)
        await self._open_store(stack)
        self._requests = self._requests_to_serve()
        self._end = RunEnd(
            self._job,
            self._supervisor,
            lambda name: self.folder.agent(name) / "agent.log",
            self._log.say,
            is_local=self.options.local_agents,
        )
        self._write_run()
        self._say_what_runs()
        control = ControlServer(self.folder.control_socket, self._observer.asked)
        await control.open()
        stack.push_async_callback(control.close)
        stack.push_async_callback(self._tasks.end)
        self._tasks.spawn(self._job.follow(self._serve_requests))
        if self.options.local_agents:
            await self._start_agents(names)
        else:
            wanted = agents_wanted(self.spec, self._store_url, self.folder.secret_file)
            self._log.say(f"waiting for {wanted}")

    def _take_secret(self) -> None:
        """Have the job's secret in its file, and its mark in the job."""
        if not self.options.resume:
            self.folder.write_secret()
        secret = JobSecret(self.folder.secret_file.read_bytes().strip())
        self.spec = replace(self.spec, credentials=secret.mark())

    async def _open_agents(self, stack: AsyncExitStack) -> None:
        """Have ready what starts agents; they come once there is a store."""
        self._site.open(
            machines=self.spec.machines,
            standbys=self.options.standby,
            log=self.folder.storage_log,
        )
        stack.callback(self._site.close)
        self._forks = AgentForkLink(
            Path(self.spec.script),
            self.folder.fork_server_log,
            self._exited,
            agent_main=self._entries[0],
            preload=self._entries[1],
            environment=inherited_environment(),
            place=self._site.place,
        )
        self._supervisor = Supervisor(self._forks, self._agent_options, self._log.say)
        if self.options.local_agents:
            stack.callback(self._forks.close)
            stack.push_async_callback(self._supervisor.close)
            await self._forks.open()

    def _requests_to_serve(self) -> MachineRequests:
        """Return who answers the root's requests for machines."""
        local = self.options.local_agents
        return MachineRequests(
            self._store,
            self.options.operator or (LOCAL if local else ""),
            JobToJoin(
                job=self.spec.job,
                run=self.spec.run,
                store=self._store_url,
                secret=self.folder.secret_file,
                folder=self.folder.path / "operator",
                start_here=self._supervisor.provide if local else None,
            ),
            spawn=self._tasks.spawn,
            say=self._log.say,
        )

    def _say_what_runs(self) -> None:
        """Say in the log which run begins, or goes on, and where."""
        if self.options.resume:
            where = f"iteration {self._complete}" if self._complete else "what its agents hold"
            self._log.say(f"run {self.spec.run} goes on from {where} in memory")
        else:
            started = run_started(self.spec, self.options.compute)
            self._log.report(started, self.spec.started_ns)
        if (cluster := self._site.to_json()) is not None:
            self._log.say(f"on the emulated cluster {cluster['name']}")
        for note in self.options.notes:
            self._log.say(note)

    async def _start_agents(self, names: list[str]) -> None:
        ready = asyncio.ensure_future(self._forks.wait_ready())
        while not ready.done() and not self._interrupted:
            await asyncio.wait([ready], timeout=0.1)
        if self._interrupted:
            ready.cancel()
            return
        self.imported_s = float(ready.result()["seconds"])
        self._log.say(f"the modules that trainers import are loaded ({self.imported_s:.1f} s)")
        for name in names:
            await self._supervisor.start(name)
        for _ in range(self.options.standby):
            await self._supervisor.provide()
        self._write_run()

    async def _open_store(self, stack: AsyncExitStack) -> None:
        self._store_url, etcd = self.options.store, None
        if self.options.store == EMBEDDED:
            etcd = OwnEtcd(self.folder.etcd, self._site.gateway)
            stack.push_async_callback(etcd.stop)
            self._store_url = await etcd.start()
        self._observer.begin(
            LiveRun(
                folder=self.folder,
                spec=self.spec,
                etcd=etcd,
                root=lambda: "" if self._job.view is None else self._job.view.root,
                options_for=self._agent_options,
                doom=self._supervisor.doom,
                intrude=self._supervisor.intrude,
                report=self._log.report,
                say=self._log.say,
                spawn=self._tasks.spawn,
            )
        )
        stack.callback(self._observer.close)
        self._store = open_store(self._store_url)
        stack.push_async_callback(self._store.close)
        if self.options.placed_by_agents:
            wanted = agents_wanted(self.spec, self._store_url, self.folder.secret_file)
            self._write_run()  # whoever starts them finds the store's address there
            self._log.say(f"waiting for {wanted} --domain NAME")
            self.spec = await placed_by_agents(
                self._store, self.spec, lambda: bool(self._interrupted), self._log.say
            )
        self._job = StoredJob(self._store, self.spec)
        await self._job.write()
        with contextlib.suppress(StoreUnavailableError):  # it has just taken the job
            self._store_version = await self._store.version()
        self._log.say(f"the store is etcd {self._store_version or 'of an unknown version'}")
        if fault := fault_of(self._store_version):
            self._log.say(fault)
        if self.options.store != EMBEDDED:
            stack.push_async_callback(self._job.forget)
        if not self.options.local_agents:
            stack.push_async_callback(self._end_agents)

    async def _end_agents(self) -> None:
        """Who interrupts the launcher ends the job, also where agents are not its children."""
        if self._interrupted:
            await self._job.stop("the job was interrupted by its user", GRACE_S)

    # ---- while it runs ---------------------------------------------------------------------

    async def _supervise(self) -> Outcome:
        while True:
            self._read_logs()
            self._observer.poll(time.monotonic())
            if (outcome := await self._outcome()) is not None:
                self._read_logs()
                return self._observer.outcome(outcome)
            if time.monotonic() - self._table_at_s >= _TABLE_EVERY_S:
                self._table_at_s = time.monotonic()
                self._screen.table(self._job.view, self.folder.records())
            await asyncio.sleep(self._observer.look_every_s)

    def _read_logs(self) -> None:
        for entry in self._log.read():
            event = entry.event
            self._observer.saw(event, time.monotonic())
            if isinstance(event, IterationEnded) and event.iteration > self._reached:
                self._reached = event.iteration
                self._supervisor.progressed()

    async def _outcome(self) -> Outcome | None:
        if self._interrupted:
            return Outcome("interrupted", "interrupted", 128 + self._interrupted)
        if self._tasks.fatal:
            return Outcome("failed", self._tasks.fatal, GIVEN_UP)
        return await self._end.look()

    async def _serve_requests(self, view: JobView) -> None:
        for agent, refusal in sorted(view.refused.items()):
            if self._refused.get(agent) != refusal:
                self._refused[agent] = refusal
                self._log.say(f"agent {agent} on {refusal.host} was refused: {refusal.reason}")
        complete = (report.complete for report in view.reports.values())
        self._complete = max((self._complete, *complete))
        if view.plan is not None and view.plan.generation != self._generation:
            self._generation = view.plan.generation
            self._write_run()
        self._requests.serve(view)

    # ---- small things ----------------------------------------------------------------------

    def _exited(self, end: AgentExit) -> None:
        self._site.left(end.name)
        self._supervisor.exited(end)

    def _agent_options(self, name: str, standby: bool) -> AgentOptions:
        return AgentOptions(
            name=name,
            job=self.spec.job,
            store=self._store_url,
            folder=self.folder.agent(name),
            standby=standby,
            domain=self._domains.get(name, ""),
            secret=self.folder.secret_file,
            under_launcher=True,
            metrics_port=0 if self.options.metrics else None,
            listen=self._site.address(name),
        )

    def _write_run(self) -> None:
        self.folder.write_run(
            run_record(
                self.spec,
                self.options,
                store=self._store_url,
                store_version=self._store_version,
                agents=self._forks.pids if hasattr(self, "_forks") else {},
                generation=self._generation,
                cluster=self._site.to_json(),
            )
        )

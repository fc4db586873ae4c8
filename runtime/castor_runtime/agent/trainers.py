"""The trainer processes of one machine: started, stopped, or parked between two generations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from castor_policy.agents.events import TrainerEnded, WorkerEvent
from castor_policy.agents.evidence import tells_of_lost_peer
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.checkpoint_memory import SAVING
from castor_records.events.event import Event
from castor_records.events.failures import SpareTaken, TrainerStarted, TrainerStayed
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.kernel_log import KernelLog
from castor_runtime.agent.log_tail import last_line, log_end
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.parking import Parking
from castor_runtime.agent.trainer_host import TrainerHost
from castor_runtime.agent.trainer_link import TrainerLink
from castor_runtime.agent.trainer_start import TrainerStart
from castor_runtime.agent.warm_spares import GENERATION as SPARES
from castor_runtime.agent.warm_spares import WarmSpares
from castor_runtime.agent.watchdog import Watchdog
from castor_runtime.arena import ControlBlock, TrainerPhase
from castor_runtime.arena.own_turn import let_turns_end
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.processes import is_alive
from castor_runtime.trainer.agent_link import TrainerSettings


class Trainers:
    """The trainers of one machine, and the warm spares beside them.

    Attributes:
        pids: the trainers' processes by rank; between two generations of those that are parked.

    Args:
        spec: the job.
        options: of the agent.
        host: runs the processes.
        link: to them.
        control: their counters.
        log: the event log.
        emit: gets the worker's events.
        beside: what goes on for a generation; it is given up with that.
        holds: whether the own replica of a rank has an iteration whole.
    """

    def __init__(
        self,
        spec: JobSpec,
        options: AgentOptions,
        host: TrainerHost,
        link: TrainerLink,
        control: ControlBlock,
        log: EventLog,
        emit: Callable[[WorkerEvent], None],
        beside: BackgroundTasks,
        holds: Callable[[int, int], bool],
    ) -> None:
        self.pids: dict[int, int] = {}
        self._spec = spec
        self._folder = options.folder
        self._host = host
        self._control = control
        self._log = log
        self._emit = emit
        self._beside = beside
        self._holds = holds
        self._ended: set[int] = set()
        self._ranks: tuple[int, ...] = ()
        self._hold = 0
        self._parking = Parking(link)
        self._starting = TrainerStart(spec, options, link.address, control.name)
        self._spares = WarmSpares(link, log, options.folder)
        self._watchdog = Watchdog(spec, control, emit)
        self._kernel_log = KernelLog()

    def hear(self, op: str, generation: int, rank: int) -> None:
        """Take in what a trainer, or a spare, says of itself; other words are nothing here."""
        if generation != SPARES and op in ("in_place", "hello", "left"):
            self._parking.hear(op, generation, rank)
        elif generation == SPARES and op == "waits":
            self._spares.waits(rank)

    # ---- the end of a generation ---------------------------------------------------------------

    async def stop(self) -> None:
        """Kill the trainers and the spares, and give up what was begun for them."""
        self._watchdog.stop()
        await self._let_turns_end()
        await self._end(frozenset(), frozenset())

    def close(self) -> None:
        """Start none any more; they are stopped."""
        self._kernel_log.close()

    async def park(self) -> None:
        """Have the trainers leave that can, and kill the others; give up what was begun for any.

        Where no place in memory is left for a second copy, what they have begun to write over is
        whole before they leave.
        """
        self._watchdog.stop()
        await self._let_turns_end()
        alive = {rank: pid for rank, pid in self.pids.items() if rank not in self._ended}
        await self._parking.park(alive)
        parked = self._parking.parked & alive.keys() - self._ended
        await self._end(parked, self._spares.pids())

    async def _end(self, parked: frozenset[int], spares: frozenset[int]) -> None:
        """Kill all trainers but the parked ranks, and all spares but those processes."""
        self._beside.cancel()
        await self._kill_all_but(parked, spares)
        await self._beside.wait()
        self._ended.clear()

    async def _kill_all_but(self, parked: frozenset[int], spares: frozenset[int]) -> None:
        await self._host.kill_all({self.pids[rank] for rank in parked} | spares)
        if not spares:
            self._spares.forget()
        self._parking.forget(parked)
        self.pids = {rank: self.pids[rank] for rank in sorted(parked)}

    async def _let_turns_end(self) -> None:
        """Where memory is saved, let the trainers finish what they have begun to write over."""
        if self._spec.memory.mode != SAVING or not self.pids:
            return
        ranks = self._ranks

        def is_whole(local: int, iteration: int) -> bool:
            return self._holds(ranks[local], iteration)

        def has_ended(local: int) -> bool:
            return ranks[local] not in self.pids or ranks[local] in self._ended

        await let_turns_end(self._control.ranks, is_whole, has_ended)

    # ---- its beginning ---------------------------------------------------------------------------

    async def run(self, plan: Plan, machine: int) -> None:
        """Have the parked ones join the plan's generation, and spares; fork the others."""
        await self._host.wait_ready()
        if self.pids and not plan.in_place:
            # What this generation begins from is in no memory.
            await self._kill_all_but(frozenset(), frozenset())
        self._ranks = tuple(self._spec.ranks_of(machine))
        for counters in self._control.ranks:  # all of them first: what ranks turned to is compared
            counters.clear()
        for local, rank in enumerate(self._ranks):
            self._control.rank(local).hold = int(self._hold == plan.generation)
            log = self._folder / f"rank-{rank}.log"
            said_before = log.stat().st_size if log.exists() else 0
            settings = self._starting.settings(plan, machine, local, rank)
            self._log.write(await self._bring(plan, settings, log))
            self._beside.spawn(self._wait_for_end(plan.generation, local, rank, said_before))
        self._watchdog.watch(plan.generation, dict(self.pids))
        if self._spec.recovery.warm_spares:
            self._beside.spawn(self._keep_spares(plan, machine))

    async def _bring(self, plan: Plan, settings: TrainerSettings, log: Path) -> Event:
        """Bring a rank's trainer into the generation; return what is told of it."""
        generation, rank = plan.generation, settings.rank
        pid = self.pids.get(rank, 0)
        if is_alive(pid):
            self._parking.join(rank, settings, plan.rendezvous)
            return TrainerStayed(generation=generation, rank=rank, pid=pid)
        self._parking.forget(frozenset(self.pids.keys() - {rank}))  # it ended while it was parked
        spare = self._spares.take(settings, plan.rendezvous, log) if plan.in_place else 0
        self.pids[rank] = spare or await self._start(plan, settings, log)
        kind = SpareTaken if spare else TrainerStarted
        return kind(generation=generation, rank=rank, pid=self.pids[rank])

    async def _start(self, plan: Plan, settings: TrainerSettings, log: Path) -> int:
        return await self._host.start_trainer(
            settings.rank,
            self._spec.script,
            self._spec.arguments,
            self._starting.environment(plan, settings),
            log,
        )

    async def _keep_spares(self, plan: Plan, machine: int) -> None:
        def settings_of(rank: int) -> TrainerSettings:
            local = self._ranks.index(rank)
            return self._starting.settings(plan, machine, local, rank, is_spare=True)

        def iterations() -> int:
            if not self._parking.are_able(self.pids):
                return 0  # a script that does not go on in place has no use for them
            return min(one.iteration for one in self._control.ranks)

        async def start(settings: TrainerSettings, log: Path) -> int:
            return await self._start(plan, settings, log)

        await self._spares.keep(self.pids, start, settings_of, iterations, plan.iteration)

    async def _wait_for_end(self, generation: int, local: int, rank: int, said_before: int) -> None:
        code = await self._host.wait_end(self.pids[rank])
        self._ended.add(rank)
        said = log_end(self._folder / f"rank-{rank}.log", said_before) if code else ""
        kernel = self._kernel_log.why_ended(self.pids[rank]) if code else None
        words = (
            last_line(said) if code > 0 else "",
            f"the kernel: {kernel.text}" if kernel else "",
        )
        phase = self._control.rank(local).phase
        self._emit(
            TrainerEnded(
                generation,
                rank,
                code,
                "; ".join(one for one in words if one),
                # What was done to it was no peer's doing, whatever it said last.
                lost_peer=not (kernel and kernel.of_it) and tells_of_lost_peer(said),
                left_early=code == 0 and phase != TrainerPhase.FINISHED,
            )
        )

    def hold(self, generation: int, *, is_current: bool) -> None:
        """Have the trainers hold once their next checkpoint is complete.

        Args:
            generation: of which it is asked.
            is_current: it is theirs.
        """
        self._hold = generation
        if is_current:
            for counters in self._control.ranks:
                counters.hold = 1

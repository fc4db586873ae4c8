"""Watches the trainers of one machine through the control block: hung, standing, how far."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from castor_policy.agents.events import Progressed, TrainerHung, TrainersStanding, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_policy.trainer_watch import LOOK_EVERY_S, Hung, Sign, Standing, TrainerWatch
from castor_runtime.arena import ControlBlock, RankControl
from castor_runtime.processes import activity


class Watchdog:
    """Looks at the trainers twenty times a second.

    Args:
        spec: the job.
        control: where the trainers count their heartbeats and iterations.
        emit: gets `Progressed`, `TrainerHung` and `TrainersStanding`.
    """

    def __init__(
        self, spec: JobSpec, control: ControlBlock, emit: Callable[[WorkerEvent], None]
    ) -> None:
        self._spec = spec
        self._control = control
        self._emit = emit
        self._task: asyncio.Task[None] | None = None

    def watch(self, generation: int, trainers: Mapping[int, int]) -> None:
        """Watch these trainers (rank -> process) until `stop`."""
        self.stop()
        self._task = asyncio.create_task(self._look(generation, trainers))

    def stop(self) -> None:
        """Watch nobody."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self, generation: int, trainers: Mapping[int, int]) -> None:
        watch = TrainerWatch(self._spec.limits)
        counters = {rank: self._control.rank(local) for local, rank in enumerate(sorted(trainers))}
        told, progress = False, (0, 0)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            newest = min(one.iteration for one in counters.values())
            before, progress = progress, (newest, min(one.agreed for one in counters.values()))
            if newest > 0 and progress != before:  # each costs worker, root and journal a turn
                self._emit(Progressed(generation, *progress))
            signs = {rank: _sign(one, trainers[rank]) for rank, one in counters.items()}
            match watch.observe(time.monotonic(), signs):
                case Hung(rank, reason):
                    self._emit(TrainerHung(generation, rank, reason))
                    return
                case Standing(positions, _) if not told:
                    told = True
                    self._emit(TrainersStanding(generation, positions))
                case None if told:
                    told = False
                    self._emit(TrainersStanding(generation, {}))
                case _:
                    pass


def _sign(counters: RankControl, pid: int) -> Sign:
    phase = int(counters.phase)
    used_s, stopped = activity(pid)
    return Sign(
        phase=phase,
        heartbeat=counters.heartbeat,
        collectives=counters.collectives,
        position=(phase, counters.iteration, counters.shared_collectives),
        processor_s=used_s,
        stopped=stopped,
        busy=time.monotonic_ns() < counters.busy_until_ns,
    )

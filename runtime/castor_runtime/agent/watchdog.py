"""Watches the trainers of one machine through the control block: hung, stalled, how far."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from castor_policy.agents.documents import JobSpec
from castor_policy.agents.messages import Progressed, TrainerHung, WorkerEvent
from castor_policy.membership import Stall, Stillness
from castor_runtime.arena import ControlBlock, TrainerPhase
from castor_runtime.processes import processor_s

_LOOK_EVERY_S = 0.05
_LONGEST_GAP_S = 0.1


class Watchdog:
    """Looks at the trainers twenty times a second.

    Args:
        spec: the job.
        control: where the trainers count their heartbeats and iterations.
        emit: gets `Progressed` and `TrainerHung`.
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
        stillness = {rank: Stillness(self._spec.hang_s, _LONGEST_GAP_S) for rank in trainers}
        stall = Stall(self._spec.stall_factor)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now_s = time.monotonic()
            newest = []
            for local, rank in enumerate(sorted(trainers)):
                line = self._control.rank(local)
                if line.phase == TrainerPhase.FINISHED:
                    newest.append(line.iteration)
                    continue
                busy_s = processor_s(trainers[rank])
                if line.heartbeat and busy_s is not None:
                    still = stillness[rank].observe(now_s, line.heartbeat, busy_s)
                    if still:
                        stood = f"stood still for {self._spec.hang_s:g} s"
                        self._emit(TrainerHung(generation, rank, stood))
                        return
                newest.append(line.iteration)
            if newest and min(newest) > 0:
                lines = [self._control.rank(local) for local in range(len(trainers))]
                agreed = min(line.agreed for line in lines)
                self._emit(Progressed(generation, min(newest), agreed))
            training = any(
                self._control.rank(local).phase == TrainerPhase.TRAINING
                for local in range(len(trainers))
            )
            if training and stall.observe(now_s, min(newest)):
                slowest = sorted(trainers)[newest.index(min(newest))]
                self._emit(TrainerHung(generation, slowest, "ends no iteration any more"))
                return

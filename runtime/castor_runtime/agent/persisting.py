"""Has this machine's share of persistent checkpoints written, beside training."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor_policy.agents.events import PersistEnded, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_records.events.storing import Persisted, PersistFailed
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.log_tail import last_words
from castor_runtime.agent.trainer_host import TrainerHost

_WAIT_S = 3600.0
"""An iteration that was announced and has not come by then never will."""

AT_ONCE = 3
"""Shares that may be under way at once; each keeps a copy of its parts in memory."""

LATE_S = 30.0
"""A share that is under way for so long when the next one is due is told of."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a trainer said of its part: where the tensors lie, and the file of everything else."""

    sections: Sequence[Mapping[str, Any]]
    template: str


class Persister:
    """Starts the processes that write; they copy out of checkpoint memory before they write.

    Args:
        spec: the job.
        folder: of the agent, for the log.
        host: runs the processes.
        log: the event log.
        emit: gets `PersistEnded`.
    """

    def __init__(
        self,
        spec: JobSpec,
        folder: Path,
        host: TrainerHost,
        log: EventLog,
        emit: Callable[[WorkerEvent], None],
    ) -> None:
        self._spec = spec
        self._log_file = folder / "persist.log"
        self._host = host
        self._log = log
        self._emit = emit
        self._begun: set[tuple[int, int]] = set()
        self._running: dict[int, float] = {}

    async def write(
        self,
        generation: int,
        iteration: int,
        machine: int,
        fingerprint: str,
        segments: Mapping[int, str],
        described: Mapping[int, Described],
    ) -> None:
        """Write the machine's parts of `iteration` once it is complete; a second call does nothing.

        A checkpoint that fails costs nothing but itself: training does not wait for it.
        """
        if (generation, iteration) in self._begun:
            return
        self._begun.add((generation, iteration))
        began_s = time.monotonic()
        if self._running:
            oldest = min(self._running, key=lambda one: self._running[one])
            late_s = began_s - self._running[oldest]
            if late_s > LATE_S:
                late = f"iteration {oldest} has been under way for {late_s:.0f} s"
                self._emit(PersistEnded(iteration, late))
            if len(self._running) >= AT_ONCE:
                return
        order = {
            "folder": self._spec.persistence.path,
            "attempt": {
                "job": self._spec.job,
                "fingerprint": fingerprint,
                "iteration": iteration,
                "generation": generation,
                "run": self._spec.run,
                "world_size": self._spec.machines * self._spec.ranks_per_machine,
            },
            "parts": [
                {
                    "rank": rank,
                    "segment": segments[rank],
                    "template": described[rank].template,
                    "sections": list(described[rank].sections),
                }
                for rank in self._spec.ranks_of(machine)
            ],
            "wait_s": _WAIT_S,
            "keep": self._spec.persistence.keep,
            "others_s": self._spec.persistence.storage_s,
        }
        self._running[iteration] = began_s
        try:
            await self._carry_out(generation, iteration, machine, order)
        finally:
            self._running.pop(iteration, None)

    async def _carry_out(
        self, generation: int, iteration: int, machine: int, order: Mapping[str, Any]
    ) -> None:
        began_s = time.monotonic()
        pid = await self._host.start_call(
            f"persist {generation} {iteration}",
            "castor_runtime.persistent.machine_share:write",
            {"order": json.dumps(order)},
            self._log_file,
        )
        code = await self._host.wait_end(pid)
        if code == 0:
            self._log.write(
                Persisted(
                    machine=machine,
                    iteration=iteration,
                    generation=generation,
                    seconds=time.monotonic() - began_s,
                )
            )
        else:
            said = last_words(self._log_file) or f"the process that writes it ended with {code}"
            self._log.write(
                PersistFailed(
                    machine=machine, iteration=iteration, generation=generation, cause=said
                )
            )
            sys.stderr.write(f"iteration {iteration} was not persisted: {said}\n")
        self._emit(PersistEnded(iteration, "" if code == 0 else said))

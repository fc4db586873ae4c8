"""Has this machine's share of persistent checkpoints written, beside training."""

from __future__ import annotations

import asyncio
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
from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.retention import LEFT_OUT

_WAIT_S = 3600.0
"""An iteration that was announced and has not come by then never will."""

AT_ONCE = 3
"""Shares that may be under way at once, of all tiers together, though of each at least two: the one
that waits for other machines, and the next. Each keeps a copy of its parts until it is written."""

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
        self._folder = folder
        self._host = host
        self._log = log
        self._emit = emit
        self._begun: set[tuple[int, int]] = set()
        self._tiers = [_Tier(url) for url in spec.persistence.tiers]
        self._at_once = max(2, AT_ONCE // max(1, len(self._tiers)))

    async def write(
        self,
        generation: int,
        iteration: int,
        machine: int,
        fingerprint: str,
        segments: Mapping[int, str],
        described: Mapping[int, Described],
    ) -> None:
        """Write the machine's parts of `iteration` once it is complete.

        To every tier, each on its own; a second call does nothing, unless no tier has it.
        A checkpoint that fails costs nothing but itself: training does not wait for it.
        """
        if (generation, iteration) in self._begun:
            return
        self._begun.add((generation, iteration))
        order = {
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
        written = await asyncio.gather(
            *(self._write_to(tier, generation, iteration, machine, order) for tier in self._tiers)
        )
        # Of all machines, where it counts; another tier that is away holds up nobody.
        if any(written):
            self._tell(iteration, everywhere=True)
        else:
            self._begun.discard((generation, iteration))

    async def _write_to(
        self, tier: _Tier, generation: int, iteration: int, machine: int, order: Mapping[str, Any]
    ) -> bool:
        began_s = time.monotonic()
        if tier.running:
            oldest = min(tier.running, key=lambda one: tier.running[one])
            late_s = began_s - tier.running[oldest]
            if late_s > LATE_S:
                self._ended(
                    tier, iteration, f"iteration {oldest} has been under way {late_s:.0f} s"
                )
            if len(tier.running) >= self._at_once:
                return False
        tier.running[iteration] = began_s
        try:
            return await self._carry_out(tier, generation, iteration, machine, order)
        finally:
            tier.running.pop(iteration, None)

    async def _carry_out(
        self, tier: _Tier, generation: int, iteration: int, machine: int, order: Mapping[str, Any]
    ) -> bool:
        began_s = time.monotonic()
        number = self._tiers.index(tier)
        log_file = self._folder / (f"persist-{number}.log" if number else "persist.log")
        pid = await self._host.start_call(
            f"persist {generation} {iteration} {number}",
            "castor_runtime.persistent.machine_share:write",
            {"order": json.dumps({"tier": tier.url, **order})},
            log_file,
        )
        code = await self._host.wait_end(pid)
        if code == LEFT_OUT:
            return False
        said = ""
        if code == 0:
            self._log.write(
                Persisted(
                    machine=machine,
                    iteration=iteration,
                    generation=generation,
                    seconds=time.monotonic() - began_s,
                    where=tier.where,
                )
            )
        else:
            said = last_words(log_file) or f"the process that writes it ended with {code}"
            self._log.write(
                PersistFailed(
                    machine=machine,
                    iteration=iteration,
                    generation=generation,
                    cause=said,
                    where=tier.where,
                )
            )
            sys.stderr.write(f"iteration {iteration} was not persisted to {tier.where}: {said}\n")
        self._ended(tier, iteration, said)
        return not said

    def _ended(self, tier: _Tier, iteration: int, reason: str) -> None:
        tier.failure = reason
        self._tell(iteration)

    def _tell(self, iteration: int, *, everywhere: bool = False) -> None:
        """Tell of the tiers that fail at present: another's success does not mend them."""
        failing = [one for one in self._tiers if one.failure]
        told = [one.failure if len(self._tiers) == 1 else one.told() for one in failing]
        self._emit(PersistEnded(iteration, "; ".join(told), everywhere))


class _Tier:
    """A tier, and what is under way there: since when, by iteration."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.where = tier_at(url).url
        self.running: dict[int, float] = {}
        self.failure = ""

    def told(self) -> str:
        return self.failure if self.where in self.failure else f"{self.where}: {self.failure}"

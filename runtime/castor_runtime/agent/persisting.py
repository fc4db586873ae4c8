"""Has this machine's share of persistent checkpoints written, beside training."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from castor_policy.agents.events import PersistEnded, WorkerEvent
from castor_policy.agents.job_spec import JobSpec
from castor_records.events.storing import Persisted, PersistFailed, PersistLeftOut
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


class _Outcome(Enum):
    """What became of a share in one tier."""

    UNDER_WAY = auto()
    WRITTEN = auto()
    """The checkpoint counts there, of all machines."""
    FAILED = auto()
    LEFT_OUT = auto()
    """The tier is busy with an earlier one."""


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

        To every tier, each on its own: what is slow or away holds up neither training nor the
        other tiers. Another call tries those again that did not take it, unless one has it.
        """
        became = [tier.became.get((generation, iteration)) for tier in self._tiers]
        if _Outcome.WRITTEN in became:
            return
        due = [
            tier
            for tier, outcome in zip(self._tiers, became, strict=True)
            if outcome is not _Outcome.UNDER_WAY
        ]
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
        key = (generation, iteration)
        for tier in due:
            tier.became[key] = _Outcome.UNDER_WAY
        await asyncio.gather(*(self._try(tier, key, machine, order) for tier in due))

    async def _try(
        self, tier: _Tier, key: tuple[int, int], machine: int, order: Mapping[str, Any]
    ) -> None:
        tier.became[key] = await self._write_to(tier, *key, machine, order)
        if all(one.became.get(key) is _Outcome.FAILED for one in self._tiers):
            self._tell(key[1], in_vain=True)

    async def _write_to(
        self, tier: _Tier, generation: int, iteration: int, machine: int, order: Mapping[str, Any]
    ) -> _Outcome:
        began_s = time.monotonic()
        outcome = _Outcome.LEFT_OUT
        busy_s, busy_with = 0.0, 0
        # Later ones were announced and never come: trainers hold where they were asked to.
        earlier = [one for one in tier.running if one < iteration]
        if earlier:
            busy_with = min(earlier, key=lambda one: tier.running[one])
            busy_s = began_s - tier.running[busy_with]
        is_late = busy_s > LATE_S
        if is_late:
            self._ended(tier, iteration, f"iteration {busy_with} has been under way {busy_s:.0f} s")
        if len(earlier) < self._at_once:
            tier.running[iteration] = began_s
            try:
                outcome = await self._carry_out(tier, generation, iteration, machine, order)
            finally:
                tier.running.pop(iteration, None)
        if outcome is _Outcome.LEFT_OUT:
            self._log.write(
                PersistLeftOut(
                    machine=machine,
                    iteration=iteration,
                    generation=generation,
                    busy_s=busy_s,
                    where=tier.where,
                )
            )
        return _Outcome.FAILED if is_late and outcome is _Outcome.LEFT_OUT else outcome

    async def _carry_out(
        self, tier: _Tier, generation: int, iteration: int, machine: int, order: Mapping[str, Any]
    ) -> _Outcome:
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
            return _Outcome.LEFT_OUT
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
        return _Outcome.FAILED if said else _Outcome.WRITTEN

    def _ended(self, tier: _Tier, iteration: int, reason: str) -> None:
        tier.failure = reason
        self._tell(iteration, everywhere=not reason)

    def _tell(self, iteration: int, *, everywhere: bool = False, in_vain: bool = False) -> None:
        """Tell of the tiers that fail at present: another's success does not mend them."""
        failing = [one for one in self._tiers if one.failure]
        told = [one.failure if len(self._tiers) == 1 else one.told() for one in failing]
        self._emit(PersistEnded(iteration, "; ".join(told), everywhere, in_vain))


class _Tier:
    """A tier.

    Attributes:
        running: since when what is under way there, by iteration.
        became: of what was tried, by generation and iteration.
        failure: why the last share was not written; "" if it was.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.where = tier_at(url).url
        self.running: dict[int, float] = {}
        self.became: dict[tuple[int, int], _Outcome] = {}
        self.failure = ""

    def told(self) -> str:
        return self.failure if self.where in self.failure else f"{self.where}: {self.failure}"

"""Processes beside a machine's trainers, with an engine each, that take the place of one that dies.

A spare is built as its rank, and waits in `Checkpointer.resume` until it is told a generation. It
is started while the trainers train, so that a recovery has the processors for itself; a second
failure before it stands finds a new process started, as there was none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import psutil

from castor_policy.in_place import SPARES_AFTER
from castor_records.events.failures import SpareReady, SpareStarted
from castor_records.events.training import Warned
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.parking import join_message
from castor_runtime.agent.trainer_link import TrainerLink
from castor_runtime.processes import is_alive
from castor_runtime.trainer.agent_link import TrainerSettings

GENERATION: Final = 0
"""By which the link knows spares: trainers' begin with 1."""

_LOOK_S: Final = 0.1

Start = Callable[[TrainerSettings, Path], Awaitable[int]]
"""Starts a process of the script with these settings, that writes into a file; its pid."""


class WarmSpares:
    """The spares of one machine.

    Args:
        link: to the trainers, and to them.
        log: the event log.
        folder: for what they write while they wait.
    """

    def __init__(self, link: TrainerLink, log: EventLog, folder: Path) -> None:
        self._link = link
        self._log = log
        self._folder = folder
        self._pids: dict[int, int] = {}
        self._waiting: set[int] = set()
        self._told: set[int] = set()

    def pids(self) -> frozenset[int]:
        """Return the processes of those that are alive."""
        return frozenset(pid for pid in self._pids.values() if is_alive(pid))

    def waits(self, rank: int) -> None:
        """Take in that a spare is built."""
        self._waiting.add(rank)
        self._log.write(SpareReady(generation=GENERATION, rank=rank))

    def forget(self) -> None:
        """Forget all: they were killed."""
        self._pids.clear()
        self._waiting.clear()

    async def keep(
        self,
        trainers: Mapping[int, int],
        start: Start,
        settings_of: Callable[[int], TrainerSettings],
        iterations: Callable[[], int],
        begun_at: int,
    ) -> None:
        """Once the trainers train, start a spare beside each that has none.

        Args:
            trainers: their processes by rank.
            start: starts one.
            settings_of: returns those of a rank's spare.
            iterations: how many all trainers have ended.
            begun_at: how many they began with.
        """
        while iterations() < begun_at + SPARES_AFTER:
            await asyncio.sleep(_LOOK_S)
        for rank, pid in trainers.items():
            if is_alive(self._pids.get(rank, 0)):
                continue
            self._waiting.discard(rank)
            settings = settings_of(rank)
            # The kernel goes through the whole map: that takes seconds where it is large.
            try:
                needed_bytes = await asyncio.to_thread(_unshared_bytes, pid)
            except psutil.NoSuchProcess:
                return  # and with that trainer its generation ends
            free_bytes = int(psutil.virtual_memory().available)
            if needed_bytes > free_bytes:
                self._warn(settings, needed_bytes, free_bytes)
                continue
            self._pids[rank] = await start(settings, self._folder / f"spare-{rank}.log")
            self._log.write(
                SpareStarted(
                    generation=settings.generation,
                    rank=rank,
                    pid=self._pids[rank],
                    memory_bytes=needed_bytes,
                )
            )

    def take(self, settings: TrainerSettings, rendezvous: str, log: Path) -> int:
        """Have a rank's spare join the generation of `settings`; return its process, or 0.

        Args:
            settings: of the rank in that generation.
            rendezvous: where its ranks meet.
            log: where it writes from now on.
        """
        pid = self._pids.get(settings.rank, 0)
        message = join_message(settings, rendezvous) | {"log": str(log)}
        if not (
            settings.rank in self._waiting
            and is_alive(pid)
            and self._link.tell(GENERATION, settings.rank, message)
        ):
            return 0
        del self._pids[settings.rank]
        self._waiting.discard(settings.rank)
        return pid

    def _warn(self, settings: TrainerSettings, needed_bytes: int, free_bytes: int) -> None:
        if settings.rank not in self._told:
            self._told.add(settings.rank)
            message = (
                f"no warm spare for rank {settings.rank}: it would take {needed_bytes / 1e9:.1f} "
                f"GB, as its trainer does, and {free_bytes / 1e9:.1f} GB are free here"
            )
            self._log.write(
                Warned(generation=settings.generation, rank=settings.rank, message=message)
            )


def _unshared_bytes(pid: int) -> int:
    """Return what the memory of a process is that it shares with nobody."""
    return int(psutil.Process(pid).memory_full_info().uss)

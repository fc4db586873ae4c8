"""What happens around a run's machines: to its store, to its storage, and by who asks to be let in.

Everything here is repaired again, so that what follows shows what the run has made of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from castor_lab.faults.fault import Fault, FaultKind
from castor_lab.faults.machines import Struck, TargetMissingError
from castor_runtime.agent.options import AgentOptions
from castor_runtime.launcher.own_etcd import OwnEtcd
from castor_runtime.persistent.manifest import MANIFEST_NAME

FULL_AT_MOST_BYTES: Final = 1 << 30
"""A larger file system is not filled: it is not there for a fault alone."""

_HUNG_ITERATION: Final = 99_999_999
_BLOCK: Final = bytes(1 << 20)

Intrude = Callable[[AgentOptions, str], Awaitable[int]]


class Surroundings:
    """Carries out the faults that are around the machines (`Fault.is_around`), and mends them.

    Args:
        folder: of the run; what strangers say goes below it.
        persist: where persistent checkpoints go; None: nowhere.
        etcd: the store, if it is the launcher's own.
        options_for: what an agent of that name is started with.
        intrude: starts an agent beside the supervised ones, under a label of its own, and returns
            its exit code once it has ended.
    """

    def __init__(
        self,
        folder: Path,
        persist: Path | None,
        etcd: OwnEtcd | None,
        options_for: Callable[[str, bool], AgentOptions],
        intrude: Intrude,
    ) -> None:
        self._folder = folder
        self._persist = persist
        self._etcd = etcd
        self._options_for = options_for
        self._intrude = intrude
        self._count = 0
        self.strangers: dict[str, int] = {}
        """Exit code of each agent that asked to be let in and has ended."""

    async def strike(self, fault: Fault) -> list[Struck]:
        """Begin a fault of these kinds.

        Raises:
            TargetMissingError: this run has no such thing.
        """
        now_ns = time.time_ns()
        match fault.kind:
            case FaultKind.STORE | FaultKind.WIPE:
                await self._own_etcd().kill()
            case FaultKind.STORAGEHANG:
                await asyncio.to_thread(self._hang)
            case FaultKind.STORAGEFULL:
                await asyncio.to_thread(self._fill)
            case _:
                pass
        shown = ",".join(map(str, fault.targets))
        target = f"{fault.kind}:{shown}" if shown else str(fault.kind)
        return [Struck(target, "software", "", None, time_ns=now_ns)]

    async def mend(self, fault: Fault, agents: Mapping[int, str]) -> str:
        """Let a fault last as long as it does, and mend it; return what is to be said of that.

        Args:
            fault: that has begun.
            agents: name of the agent that filled each machine when it did.
        """
        match fault.kind:
            case FaultKind.TWIN:
                return await self._twins(fault, agents)
            case FaultKind.STRANGER:
                return await self._stranger()
            case _:
                await asyncio.sleep(fault.outage_s)
        if fault.kind == FaultKind.WIPE:
            await self._own_etcd().wipe()
        if fault.kind in (FaultKind.STORE, FaultKind.WIPE):
            await self._own_etcd().restart()
            empty = ", empty" if fault.kind == FaultKind.WIPE else ""
            return f"the store runs again{empty}"
        await asyncio.to_thread(self.close)
        return "persistent storage is as it was"

    def close(self) -> None:
        """Mend the persistent storage, if anything is wrong with it."""
        if self._persist is None:
            return
        self._filler.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            # Who waits for the pipe's other end is let go: it opens, and is at its end at once.
            os.close(os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK))
            self._pipe.unlink()
            self._pipe.parent.rmdir()

    # ---- strangers -----------------------------------------------------------------------------

    async def _twins(self, fault: Fault, agents: Mapping[int, str]) -> str:
        ended = []
        for target in fault.targets:
            name = agents.get(target, "") if isinstance(target, int) else target
            if name:
                ended.append(await self._ask(f"twin-of-{name}", self._options_for(name, False)))
        return "; ".join(ended)

    async def _stranger(self) -> str:
        """A standby comes with another job's secret."""
        label = f"stranger-{self._count}"
        folder = self._folder / label
        folder.mkdir(parents=True, exist_ok=True)
        secret = folder / "secret"
        secret.write_text(secrets.token_hex(32) + "\n", encoding="ascii")
        return await self._ask(label, replace(self._options_for(label, True), secret=secret))

    async def _ask(self, label: str, options: AgentOptions) -> str:
        self._count += 1
        options = replace(options, folder=self._folder / label)
        code = self.strangers[label] = await self._intrude(options, label)
        return f"{label} ended with exit code {code}"

    # ---- storage -------------------------------------------------------------------------------

    @property
    def _pipe(self) -> Path:
        return self._storage() / f"global_step{_HUNG_ITERATION}" / MANIFEST_NAME

    @property
    def _filler(self) -> Path:
        return self._storage() / ".castor-full"

    def _hang(self) -> None:
        """Put a pipe where readers of the storage look: they wait as for a server that is gone."""
        self._pipe.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(self._pipe)

    def _fill(self) -> None:
        storage = self._storage()
        storage.mkdir(parents=True, exist_ok=True)
        about = os.statvfs(storage)
        if about.f_blocks * about.f_frsize > FULL_AT_MOST_BYTES:
            raise TargetMissingError(f"{storage} is on a large file system, which is not filled")
        try:
            with self._filler.open("wb", buffering=0) as file:
                while file.write(_BLOCK):
                    pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def _storage(self) -> Path:
        if self._persist is None:
            raise TargetMissingError("this run keeps no persistent checkpoints: give --persist")
        return self._persist

    def _own_etcd(self) -> OwnEtcd:
        if self._etcd is None:
            raise TargetMissingError("this run's store was not started by its launcher")
        return self._etcd

"""The embedded etcd of a run, for an event loop: started, killed, wiped and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from castor_configs.errors import InputError
from castor_runtime.stores import EmbeddedEtcd, EtcdStartError


class OwnEtcd:
    """The embedded etcd, driven from a thread of its own that lives as long as etcd may.

    Its starts block, and etcd dies with the thread that started it.
    """

    def __init__(self, data_dir: Path, host: str = "") -> None:
        self._etcd = EmbeddedEtcd(data_dir, host=host)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="castor-etcd")

    async def start(self) -> str:
        """Start it and return its address.

        Raises:
            InputError: it did not come up; the message holds the reason, be it the end of its log.
        """
        try:
            await self._call(self._etcd.start)
        except EtcdStartError as error:
            raise InputError(f"the store did not start: {error}", key="--store") from error
        return self._etcd.url

    async def kill(self) -> None:
        """Kill -9."""
        await self._call(self._etcd.kill)

    async def restart(self) -> None:
        """Start it again with its data, on its port.

        Raises:
            EtcdStartError: it did not come up.
        """
        await self._call(self._etcd.restart)

    async def wipe(self) -> None:
        """Remove the data of a store that was killed: it comes back empty."""
        await self._call(self._etcd.wipe)

    async def stop(self) -> None:
        """End it for good."""
        await self._call(self._etcd.close)
        self._thread.shutdown()

    async def _call(self, function: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function)

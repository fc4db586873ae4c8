"""Serves a job's requests for machines through an operator; `machine_request` decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from castor_policy.agents.machine_request import (
    Progress,
    Served,
    Step,
    again_s,
    is_needed,
    next_step,
    served_prefix,
)
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import requests_prefix
from castor_policy.store import Compare, Delete, KeyValue, Put, Store, StoreUnavailableError, Txn
from castor_runtime.fork_server_link import ForkServerError
from castor_runtime.operators.protocol import Operator, OperatorError, Request

AT_A_TIME: Final = 8
"""Most machines that are asked for at once."""

_STORE_AGAIN_S: Final = 0.1


class RequestServer:
    """Serves the root's requests through an operator, each once.

    Several may serve one job, and one may take over from another that died: what was asked for
    stands in the store.

    Args:
        store: of the job.
        job: its name.
        operator: brings the machines.
        spawn: runs a task that goes on beside; it hears of what a task raises.
        say: told in a line what happens.
    """

    def __init__(
        self,
        store: Store,
        job: str,
        operator: Operator,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._job = job
        self._operator = operator
        self._plan: Plan | None = None
        self._arrived: set[str] = set()
        self._spawn = spawn
        self._say = say
        self._going_on: set[str] = set()
        self._places = asyncio.Semaphore(AT_A_TIME)

    def serve(self, keys: Iterable[str], plan: Plan | None, agents: Iterable[str]) -> None:
        """Begin to serve requests, but for those that are being served.

        Args:
            keys: of those that stand in the store.
            plan: the job's, as it was last seen.
            agents: that have a report in the store.
        """
        self._plan = plan
        self._arrived |= set(agents)
        for key in keys:
            if key not in self._going_on:
                self._going_on.add(key)
                self._spawn(self._serve(key))

    async def _serve(self, key: str) -> None:
        try:
            while not await self._served(key):
                pass
        finally:
            self._going_on.discard(key)

    async def _served(self, key: str) -> bool:
        """Take the next step of a request; return whether it was the last."""
        try:
            asked, record = await self._read(key)
            if asked is None:
                return True
            name = key.removeprefix(requests_prefix(self._job))
            served = None if record is None else Served.from_json(record.value)
            step, wait_s = next_step(
                served,
                needed=is_needed(self._plan, name),
                arrived=served is not None and served.agent in self._arrived,
                now_s=time.time(),
                patience_s=self._operator.patience_s,
            )
            if step is Step.WAIT:
                await asyncio.sleep(wait_s)
            elif step is Step.DROP:
                await self._store.transact(Txn((), (Delete(key),)))
            else:
                async with self._places:
                    await self._ask(asked, record, served)
        except StoreUnavailableError:
            await asyncio.sleep(_STORE_AGAIN_S)
        return False

    async def _ask(self, asked: KeyValue, record: KeyValue | None, served: Served | None) -> None:
        """Ask the operator, unless somebody else has begun to since the request was read."""
        name = asked.key.removeprefix(requests_prefix(self._job))
        attempts = 1 if served is None else served.attempts + 1
        agent = f"spare-{name}-{attempts}"
        key = served_prefix(self._job) + name

        def put(progress: Progress, words: str = "") -> Put:
            served = Served(name, progress, attempts, time.time(), agent, words)
            return Put(key, served.to_json())

        begun = await self._store.transact(
            Txn(
                (
                    Compare(key, mod_revision=0 if record is None else record.mod_revision),
                    Compare(asked.key, create_revision=asked.create_revision),
                ),
                (put(Progress.ASKING),),
            )
        )
        if not begun.succeeded:
            return
        try:
            words = await self._operator.provide(Request(name, agent))
        except OperatorError as error:
            self._say(
                f"no machine could be asked for (request {name}, attempt {attempts}): {error}; "
                f"again in {again_s(attempts):g} s"
            )
            await self._write(put(Progress.FAILED, str(error)))
            return
        except ForkServerError:
            raise
        except Exception as error:  # noqa: BLE001 - a stranger's fault must not end training
            words = f"{type(error).__name__}: {error}; a machine may be on its way"
        self._say(f"a machine was asked for: {words}")
        await self._write(put(Progress.COMING, words), Delete(asked.key))

    async def _write(self, *operations: Put | Delete) -> None:
        """Write until the store answers: what has been asked for must be known."""
        while True:
            try:
                await self._store.transact(Txn((), operations))
            except StoreUnavailableError:
                await asyncio.sleep(_STORE_AGAIN_S)
            else:
                return

    async def _read(self, key: str) -> tuple[KeyValue | None, KeyValue | None]:
        """Return the request, and its record, as they stand."""
        record = served_prefix(self._job) + key.removeprefix(requests_prefix(self._job))
        found: dict[str, KeyValue] = {}
        for one in (key, record):
            entries, _ = await self._store.get_prefix(one)
            found |= {entry.key: entry for entry in entries}
        return found.get(key), found.get(record)

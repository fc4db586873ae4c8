"""Who brings machines when the root asks for one: a cloud, a scheduler, or this computer.

The root writes a request into the store (`RequestMachine`); whoever operates the job's machines
serves it and deletes the key. The agent on the machine then joins as a standby, and the root gives
it a place: an operator never decides who fills which. A pool of standbys needs no operator at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from castor_policy.store import Delete, Store, Txn


class Operator(Protocol):
    """Brings machines to a job."""

    async def provide(self) -> str:
        """Bring one more machine that runs `castor agent --standby`; return its agent's name.

        Returns once the machine is on its way. If it never joins, the root asks again.
        """
        ...


class RequestServer:
    """Serves the root's requests through an operator, each once.

    Args:
        store: of the job.
        operator: brings the machines.
        say: told in a line what happens.
    """

    def __init__(self, store: Store, operator: Operator, say: Callable[[str], None]) -> None:
        self._store = store
        self._operator = operator
        self._say = say
        self._served: set[str] = set()

    async def serve(self, keys: Iterable[str]) -> list[str]:
        """Serve the requests under `keys` and return those that are done with.

        A machine is brought before the key is deleted, and not twice if the store fails between.

        Raises:
            StoreUnavailableError: call it again with what is still there.
        """
        done = []
        for key in list(keys):
            if key not in self._served:
                self._served.add(key)
                self._say(f"a machine was asked for: starting {await self._operator.provide()}")
            await self._store.transact(Txn((), (Delete(key),)))
            # The same request may be made again when this machine dies too.
            self._served.discard(key)
            done.append(key)
        return done

"""Serves one job's requests for machines until it ends, apart from its launcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from castor_configs.errors import InputError
from castor_policy.store import Store
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.launcher.following import follow
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.machine_requests import MachineRequests
from castor_runtime.operators.protocol import JobToJoin

WAIT_S: Final = 30.0
"""For a job to appear in the store, also again: after a loss of data its agents write it anew."""

_LOOK_S: Final = 0.2


class Operating:
    """Serves the requests of one job.

    Args:
        store: of the job.
        operator: its URL.
        job: what a new machine is told; its `run` is found out.
        say: told in a line what happens.
    """

    def __init__(
        self, store: Store, operator: str, job: JobToJoin, say: Callable[[str], None]
    ) -> None:
        self._store = store
        self._operator = operator
        self._job = job
        self._say = say
        self._tasks = BackgroundTasks()
        self._requests: MachineRequests | None = None
        self._view: JobView | None = None

    async def run(self) -> None:
        """Serve until the job is over.

        Raises:
            InputError: the store has no such job, or the operator refuses its URL.
        """
        self._tasks.spawn(follow(self._store, self._job.job, read=self._read, changed=self._see))
        try:
            await self._until_over()
        finally:
            await self._tasks.end()

    async def _until_over(self) -> None:
        seen_s = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._tasks.fatal:
                raise InputError(self._tasks.fatal)
            if self._view is not None and self._view.spec is not None:
                seen_s = time.monotonic()
                plan = self._view.plan
                if plan is not None and plan.is_over:
                    self._say(f"job {self._job.job} is over: {plan.phase}")
                    return
            elif time.monotonic() - seen_s > WAIT_S:
                if self._requests is None:
                    raise InputError(f"has no job {self._job.job!r}", key="--store")
                self._say(f"job {self._job.job} is in the store no more")
                return

    async def _read(self, view: JobView) -> None:
        self._view = view

    async def _see(self, view: JobView) -> None:
        if view.spec is None:
            return
        if self._requests is None:
            self._say(f"serving the requests of job {view.job}, run {view.spec.run}")
            self._requests = MachineRequests(
                self._store,
                self._operator,
                replace(self._job, run=view.spec.run),
                spawn=self._tasks.spawn,
                say=self._say,
            )
        self._requests.serve(view)

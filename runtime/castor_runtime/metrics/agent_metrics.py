"""An agent's counts from its start, and the server that tells them where one is wanted."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry

from castor_policy.agents.events import AgentEvent, PlanChanged
from castor_policy.agents.job_spec import JobSpec
from castor_records.events.event import Event
from castor_runtime.metrics.collector import AgentCollector
from castor_runtime.metrics.readings import Readings
from castor_runtime.metrics.server import MetricsServer
from castor_runtime.metrics.tally import Tally

READ_EVERY_S: Final = 1.0
STANDS_S: Final = 10.0
"""An event loop that has not turned for so long stands."""

_TRY_AGAIN_S = 5.0


class AgentMetrics:
    """Counts what an agent sees and does; serves it in a registry of its own.

    Watching never stops what is watched: a port that is taken is said once, and tried again.

    Args:
        spec: the job.
        agent: name of the agent.
        host: the address to bind.
        port: None: nothing is served; 0: a free one.
        read: reads the agent; called in its event loop.
        say: told in a line where it listens, or why it does not.

    Attributes:
        address: where it listens, host:port; "" while it does not.
    """

    def __init__(
        self,
        spec: JobSpec,
        agent: str,
        host: str,
        port: int | None,
        read: Callable[[], Readings],
        say: Callable[[str], None],
    ) -> None:
        self.address = ""
        self._tally = Tally(spec)
        self._host, self._port = host, port
        self._read, self._say = read, say
        self._readings: Readings
        self._server: MetricsServer | None = None
        self._task: asyncio.Task[None] | None = None
        self._registry = CollectorRegistry()
        self._registry.register(AgentCollector(spec, agent, self._tally, lambda: self._readings))

    def see(self, event: AgentEvent) -> None:
        """Take in what the agent sees."""
        if isinstance(event, PlanChanged):
            self._tally.plan(event.plan, time.monotonic())

    def tell(self, event: Event) -> None:
        """Take in what the agent logs."""
        self._tally.take(event, time.monotonic())

    def start(self) -> None:
        """Begin to serve, if that is wanted."""
        if self._port is not None:
            self._readings = self._read()
            self._task = asyncio.create_task(self._serve(self._port))

    async def close(self) -> None:
        """Stop serving."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    async def _serve(self, port: int) -> None:
        said, again_s = "", 0.0
        while True:
            if self._server is None and time.monotonic() >= again_s:
                try:
                    loop = asyncio.get_running_loop()
                    found = await loop.getaddrinfo(self._host, port, type=socket.SOCK_STREAM)
                    where = (found[0][0], found[0][4])
                    self._server = MetricsServer(where, self._registry, self.unwell, self.not_ready)
                    self.address = self._server.address
                    self._say(f"metrics are at http://{self.address}/metrics")
                except OSError as error:
                    again_s = time.monotonic() + _TRY_AGAIN_S
                    if said != str(error):
                        said = str(error)
                        self._say(
                            f"no metrics: {self._host} port {port} cannot be listened on: {said}; "
                            "trying again; another --metrics-port helps if somebody else has it"
                        )
            self._readings = self._read()
            await asyncio.sleep(READ_EVERY_S)

    def unwell(self) -> str:
        """Return why this agent should be started again; "" if its event loop turns."""
        stands_s = time.monotonic() - self._readings.at_s
        return "" if stands_s < STANDS_S else f"the agent's event loop stands for {stands_s:.0f} s"

    def not_ready(self) -> str:
        """Return why the job should not count on this machine now; "" if it may."""
        reachable = self._tally.read(time.monotonic()).store_reachable
        return self.unwell() or self._readings.not_ready(store_reachable=reachable)

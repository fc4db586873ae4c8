"""Who watches a run while it goes on, and may touch it: fault injection is one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from castor_policy.agents.job_spec import JobSpec
from castor_records.events.event import Event
from castor_runtime.agent.options import AgentOptions
from castor_runtime.launcher.own_etcd import OwnEtcd
from castor_runtime.launcher.result_file import Outcome
from castor_runtime.launcher.run_folder import RunFolder

LOOK_EVERY_S: Final = 0.1
"""Where nothing is planned: a look takes about a millisecond of the cores that may train."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run that goes on, as its observer may use it.

    Attributes:
        folder: of the run.
        spec: the job.
        etcd: the store, if it is the launcher's own.
        root: returns the name of the agent that is root, "" for none.
        options_for: returns what an agent is started with: (name, standby).
        doom: has the launcher leave an agent dead whose machine is about to be lost.
        intrude: starts an agent beside the supervised ones, under a label of its own, and returns
            its exit code once it has ended.
        report: logs and shows an event, with CLOCK_REALTIME in ns.
        say: shows a line.
        spawn: does some work beside the run; it is cut off when the run ends.
    """

    folder: RunFolder
    spec: JobSpec
    etcd: OwnEtcd | None
    root: Callable[[], str]
    options_for: Callable[[str, bool], AgentOptions]
    doom: Callable[[str], None]
    intrude: Callable[[AgentOptions, str], Awaitable[int]]
    report: Callable[[Event, int], None]
    say: Callable[[str], None]
    spawn: Callable[[Coroutine[None, None, None]], object]


class Observer:
    """Watches one run; this one does nothing, and knows no request."""

    def begin(self, run: LiveRun) -> None:
        """The run's store runs, and its agents are about to be started."""

    def saw(self, event: Event, now_s: float) -> None:
        """Take in what an agent has logged; `now_s` is a monotonic clock's."""

    @property
    def look_every_s(self) -> float:
        """How often the run is looked at now: `saw` and `poll` are called as late as that."""
        return LOOK_EVERY_S

    def poll(self, now_s: float) -> None:
        """Do what is due."""

    async def asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer what came over the run's control socket.

        Raises:
            ValueError: it asks for what cannot be.
        """
        raise ValueError(f"unknown request {request.get('op')!r}")

    def outcome(self, outcome: Outcome) -> Outcome:
        """Return how the run ended, with what only the observer knows of it."""
        return outcome

    def close(self) -> None:
        """Mend what was done to the run's surroundings."""

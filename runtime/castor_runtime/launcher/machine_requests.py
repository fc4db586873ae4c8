"""What a run does about its root's requests for machines: has them served, or says who may."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from castor_policy.agents.plan import Plan
from castor_policy.store import Store
from castor_runtime.launcher.job_view import JobView
from castor_runtime.operators import open_operator
from castor_runtime.operators.protocol import JobToJoin
from castor_runtime.operators.serving import RequestServer


class MachineRequests:
    """The requests of one job.

    Args:
        store: of the job.
        operator: its URL; "": there is none.
        job: what a new machine is told.
        spawn: runs a task that goes on beside; it hears of what a task raises.
        say: told in a line what happens.

    Raises:
        InputError: the operator's URL is wrong.
    """

    def __init__(
        self,
        store: Store,
        operator: str,
        job: JobToJoin,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        say: Callable[[str], None],
    ) -> None:
        self._job = job
        self._say = say
        self._told: set[str] = set()
        self._server: RequestServer | None = None
        if operator:
            opened = open_operator(operator, job)
            self._server = RequestServer(store, job.job, opened, spawn=spawn, say=say)

    def serve(self, view: JobView) -> None:
        """Serve what is asked for, or say that nobody does, once for each request."""
        if self._server is not None:
            self._server.serve(view.requests, view.plan, view.reports)
            return
        for key in view.requests:
            if key not in self._told:
                self._told.add(key)
                self._say(
                    "a machine is asked for and there is no operator: start castor agent --standby "
                    f"on one, or castor operate URL --store {self._job.store} --job {view.job}"
                )


def waiting(view: JobView) -> list[dict[str, str]]:
    """Return for each machine that is asked for how far it is with that."""
    names = [key.rpartition("/")[2] for key in view.requests]
    coming = [name for name in sorted(view.served) if name not in names and _is_empty(view, name)]
    return [{"request": name, "progress": _words(view, name)} for name in (*names, *coming)]


def _is_empty(view: JobView, request: str) -> bool:
    generation, _, machine = request.partition("-")
    plan: Plan | None = view.plan
    if plan is None:
        return True
    return str(plan.generation) == generation and not plan.agents[int(machine)]


def _words(view: JobView, name: str) -> str:
    served = view.served.get(name)
    if served is None:
        return "there is no operator that serves it: castor operate, or an agent with --standby"
    return {
        "asking": "its operator is asking for one",
        "coming": f"it is on its way: {served.words}",
        "failed": f"attempt {served.attempts} failed, it is tried again: {served.words}",
    }[served.progress]

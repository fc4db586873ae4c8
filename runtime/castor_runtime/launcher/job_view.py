"""A job as the store has it, kept up to date by what a watch brings."""

from __future__ import annotations

from dataclasses import dataclass, field

from castor_configs.errors import InputError
from castor_policy.agents.admission import Refusal, Software, refused_prefix, software_key
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.events import PlanChanged, ReportChanged, RootChanged, WishChanged
from castor_policy.agents.job_change import meaning
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.machine_request import Served, served_prefix
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import agents_prefix, job_prefix, requests_prefix, spec_key
from castor_policy.agents.wish import Wish
from castor_policy.store import KeyValue, Store, StoreEvent


@dataclass(slots=True)
class JobView:
    """What stands in the store about one job.

    Attributes:
        job: its name.
        spec: the job; None if there is no such job.
        plan: the plan; None before the first.
        root: name of the agent that is root, "" while there is none.
        term: of that root.
        reports: live agents' reports, by name.
        wishes: what the job's user asks for, by keys.
        refused: agents that may not take part, by name.
        requests: keys of the requests for machines that stand: nobody has served them.
        served: what was done about requests, by their names.
        software: what the job's first agent runs; None before there is one.
        set_aside: what is wrong with each key that holds no document of ours; it counts as none.
        revision: of the store, when this was read.
    """

    job: str
    spec: JobSpec | None = None
    plan: Plan | None = None
    root: str = ""
    term: int = 0
    reports: dict[str, AgentReport] = field(default_factory=dict)
    wishes: dict[str, Wish] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    served: dict[str, Served] = field(default_factory=dict)
    software: Software | None = None
    set_aside: dict[str, str] = field(default_factory=dict)
    revision: int = 0

    def apply(self, event: StoreEvent | KeyValue) -> None:
        """Take one key's change (or state) in; keys that mean nothing here are passed over."""
        key = event.key
        self.set_aside.pop(key, None)
        try:
            self._apply(event)
        except ValueError as error:
            self.set_aside[key] = str(error)
            self.reports.pop(key.removeprefix(agents_prefix(self.job)), None)

    def _apply(self, event: StoreEvent | KeyValue) -> None:
        key, value = event.key, event.value
        match meaning(self.job, event):
            case PlanChanged(plan):
                self.plan = plan
            case RootChanged(agent):
                self.root, self.term = agent, event.create_revision
            case ReportChanged(agent, None):
                self.reports.pop(agent, None)
            case ReportChanged(agent, AgentReport() as report):
                self.reports[agent] = report
            case WishChanged(_, None):
                self.wishes.pop(key, None)
            case WishChanged(_, Wish() as wish):
                self.wishes[key] = wish
            case _ if key == spec_key(self.job):
                self.spec = None if value is None else JobSpec.from_json(value)
            case _:
                self._apply_of_people(key, value)

    def _apply_of_people(self, key: str, value: str | None) -> None:
        """Take in what no agent acts on."""
        match key:
            case _ if key.startswith(refused_prefix(self.job)):
                agent = key.removeprefix(refused_prefix(self.job))
                self.refused.pop(agent, None)
                if value is not None:
                    self.refused[agent] = Refusal.from_json(value)
            case _ if key == software_key(self.job):
                self.software = None if value is None else Software.from_json(value)
            case _ if key.startswith(requests_prefix(self.job)):
                self.requests = sorted({*self.requests, key} - ({key} if value is None else set()))
            case _ if key.startswith(served_prefix(self.job)):
                name = key.removeprefix(served_prefix(self.job))
                self.served.pop(name, None)
                if value is not None:
                    self.served[name] = Served.from_json(value)
            case _:
                pass


async def read_view(store: Store, job: str) -> JobView:
    """Read a job as it stands.

    Raises:
        StoreUnavailableError: the store does not answer.
    """
    keys, revision = await store.get_prefix(job_prefix(job))
    view = JobView(job, revision=revision)
    for key in keys:
        view.apply(key)
    return view


async def read_job(store: Store, job: str) -> tuple[JobView, JobSpec]:
    """Read a job that has to be there.

    Raises:
        InputError: the store has no such job, or it cannot be read.
        StoreUnavailableError: the store does not answer.
    """
    view = await read_view(store, job)
    if view.spec is None:
        why = next(iter(view.set_aside.values()), "")
        raise InputError(
            f"the store's job {job!r}: {why}" if why else f"the store has no job {job!r}",
            key="JOB",
        )
    return view, view.spec

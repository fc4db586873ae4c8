"""What the keys of a job hold, as one agent has seen them last, and what each means.

A document that cannot be read, of another version of Castor or of no meaning, is set aside and told
as a trouble: it counts as no document.
"""

from __future__ import annotations

from collections.abc import Callable

from castor_policy.agents.admission import credentials_key, software_prefix
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.events import (
    PlanChanged,
    PlanLost,
    ReportChanged,
    StoreTrouble,
    WishChanged,
)
from castor_policy.agents.job_change import JobChange, meaning, name_under, read_plan
from castor_policy.agents.plan import Plan
from castor_policy.agents.plan_repair import later
from castor_policy.agents.store_keys import (
    agents_prefix,
    layout_prefix,
    plan_key,
    root_key,
    spec_key,
    wishes_prefix,
)
from castor_policy.agents.wish import Wish
from castor_policy.store import KeyValue, StoreEvent


class SeenDocuments:
    """The documents of one job.

    Args:
        job: whose.
        believes: says of a report whether its sender knows the job's secret; who does not is not
            there.

    Attributes:
        keys: as they stand, by name.
        reports: by agent.
        wishes: by key; what the store has just lost, too.
        newest_plan: that was ever seen, whatever the store has now.
    """

    def __init__(self, job: str, believes: Callable[[AgentReport], bool]) -> None:
        self._job = job
        self._believes = believes
        self._agents = agents_prefix(job)
        self._plan = plan_key(job)
        self.keys: dict[str, KeyValue] = {}
        self.reports: dict[str, AgentReport] = {}
        self.wishes: dict[str, Wish] = {}
        self.newest_plan: Plan | None = None
        self._set_aside: set[str] = set()

    # ---- what comes in -------------------------------------------------------------------------

    def take(self, event: StoreEvent) -> list[JobChange]:
        """Take in a key's change; return what is to be told of it, in order."""
        key, revision = event.key, event.mod_revision
        if event.value is None:
            self.keys.pop(key, None)
        else:
            self.keys[key] = KeyValue(key, event.value, event.create_revision, revision, None)
        told: list[JobChange] = []
        try:
            new = self.meaning(event)
        except ValueError as error:
            self._set_aside.add(key)
            told.append(StoreTrouble(key, f"set aside: {error}"))
            agent = name_under(key, self._agents)
            new = ReportChanged(agent, None) if agent in self.reports else None
            if key == self._plan:
                new = PlanLost(revision)
        else:
            if key in self._set_aside:
                self._set_aside.discard(key)
                told.append(StoreTrouble(key, ""))
        self._remember(new)
        return told if new is None else [*told, new]

    def meaning(self, event: StoreEvent | KeyValue) -> JobChange | None:
        """Return what a key's change, or its state, tells; None if nothing.

        Raises:
            ValueError: it cannot be read, or comes from nobody who knows the job's secret.
        """
        told = meaning(self._job, event)
        if isinstance(told, ReportChanged) and told.report and not self._believes(told.report):
            raise ValueError(f"agent {told.agent} has not proven that it knows the job's secret")
        return told

    def _remember(self, new: JobChange | None) -> None:
        match new:
            case PlanChanged(plan):
                self.newest_plan = later(plan, self.newest_plan)
            case ReportChanged(agent, None):
                self.reports.pop(agent, None)
            case ReportChanged(agent, AgentReport() as report):
                self.reports[agent] = report
            case WishChanged(key, None):
                self.wishes.pop(key, None)
            case WishChanged(key, Wish() as wish):
                self.wishes[key] = wish

    def forget(self, key: str) -> None:
        """Forget a key that is not followed any more."""
        self.keys.pop(key, None)
        self._set_aside.discard(key)
        self.reports.pop(name_under(key, self._agents), None)

    def lose(self) -> dict[str, str]:
        """Forget what the store had, which has lost its data; the wishes and the plan are kept.

        Returns: of what never changes, the keys and what they held.
        """
        lasting = (
            spec_key(self._job),
            layout_prefix(self._job),
            software_prefix(self._job),
            credentials_key(self._job),
            wishes_prefix(self._job),
        )
        kept = {key: known.value for key, known in self.keys.items() if key.startswith(lasting)}
        self.keys.clear()
        self.reports.clear()
        return kept

    # ---- what is known -------------------------------------------------------------------------

    def root(self) -> KeyValue | None:
        """Return the root's key."""
        return self.keys.get(root_key(self._job))

    def plan(self) -> tuple[Plan | None, int]:
        """Return the plan and the revision of its key's last change, 0 without one.

        A plan that cannot be read is none, but its key has a revision.
        """
        found = self.keys.get(self._plan)
        if found is None or self._plan in self._set_aside:
            return None, 0 if found is None else found.mod_revision
        return read_plan(found.value), found.mod_revision

    def layouts(self) -> dict[str, str]:
        """Return the documents under the layout's prefix by rank."""
        prefix = layout_prefix(self._job)
        named = ((name_under(key, prefix), found.value) for key, found in self.keys.items())
        return dict(sorted((name, text) for name, text in named if name))

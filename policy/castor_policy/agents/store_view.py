"""What an agent sees in the store.

Reads and watches bring the job's keys, whoever drives the agent; this says what they mean:

1. A change is taken in once and in the order of its key's revisions. A read is the whole truth as
   of its revision: what it no longer shows is told as deleted, and what is older and comes after it
   says nothing, be it a watch's or another read's.
2. Nothing tells of a key that never was: the first read tells that there is no root.
3. A root's key that was there before this life's first read is an earlier life's.
4. What stands in the agent's own key is told to its `OwnReport`, its absence too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from castor_policy.agents.documents import (
    AgentReport,
    Plan,
    agents_prefix,
    layout_prefix,
    persist_key,
    plan_key,
    root_key,
)
from castor_policy.agents.messages import (
    PersistChanged,
    PlanChanged,
    ReportChanged,
    RootChanged,
)
from castor_policy.agents.own_report import OwnReport
from castor_policy.store import KeyValue, StoreEvent

JobChange: TypeAlias = PlanChanged | RootChanged | PersistChanged | ReportChanged
"""What a change in the store means to an agent."""


@lru_cache(maxsize=4096)
def read_plan(text: str) -> Plan:
    """Return the plan that a key holds; plans are values, so equal texts share one.

    Raises:
        ValueError: a document of another version of Castor.
    """
    return Plan.from_json(text)


@lru_cache(maxsize=4096)
def read_report(text: str) -> AgentReport:
    """Return the report that a key holds; equal texts share one.

    Raises:
        ValueError: a document of another version of Castor.
    """
    return AgentReport.from_json(text)


def meaning(job: str, event: StoreEvent | KeyValue) -> JobChange | None:
    """Return what a key's change, or its state, tells the agents of a job; None if nothing.

    Raises:
        ValueError: a document of another version of Castor.
    """
    key, value = event.key, event.value
    if key == plan_key(job):
        return None if value is None else PlanChanged(read_plan(value), event.mod_revision)
    if key == root_key(job):
        return RootChanged(value or "")
    if key == persist_key(job):
        return None if value is None else PersistChanged(int(value))
    agent = _name(key, agents_prefix(job))
    if agent:
        return ReportChanged(agent, None if value is None else read_report(value))
    return None


class StoreView:
    """The keys of a job as one life of one agent has seen them.

    The driver reads before it passes on any change. Every document is read when it is taken in: one
    of another version of Castor raises ValueError there.

    Args:
        job: whose keys.
        agent: name of the agent.
    """

    def __init__(self, job: str, agent: str) -> None:
        self.own_report = OwnReport()
        self._job = job
        self._agent = agent
        self._own_key = agents_prefix(job) + agent
        self._keys: dict[str, KeyValue] = {}
        self._changed_revision: dict[str, int] = {}
        self._read_revision = 0
        self._born_revision: int | None = None

    # ---- what comes in -------------------------------------------------------------------------

    def read(self, found: Sequence[KeyValue], revision: int) -> list[JobChange]:
        """Take in all keys of the job as of `revision`; return what is new, to be told in order."""
        if revision < self._read_revision:
            return []  # overtaken by a later read
        told: list[JobChange] = []
        present = {item.key for item in found}
        for key in sorted(set(self._keys) - present):
            told += self.change(StoreEvent(key, None, 0, revision))
        for item in found:
            told += self.change(
                StoreEvent(item.key, item.value, item.create_revision, item.mod_revision)
            )
        self._read_revision = revision
        if self._own_key not in present:
            self.own_report.known(None, revision)  # what this life wrote may be gone unseen
        if self._born_revision is None:
            self._born_revision = revision
            if self.root() is None:
                told.append(RootChanged(""))
        return told

    def change(self, event: StoreEvent) -> list[JobChange]:
        """Take in a change that a watch shows; return what is new of it, to be told in order."""
        key, revision = event.key, event.mod_revision
        if revision <= max(self._read_revision, self._changed_revision.get(key, 0)):
            return []
        self._changed_revision[key] = revision
        if event.value is None:
            self._keys.pop(key, None)
        else:
            self._keys[key] = KeyValue(key, event.value, event.create_revision, revision, None)
        if key == self._own_key:
            there = None if event.value is None else read_report(event.value)
            self.own_report.known(there, revision)
        told = meaning(self._job, event)
        return [] if told is None else [told]

    # ---- what is known -------------------------------------------------------------------------

    def root(self) -> KeyValue | None:
        """Return the root's key as last seen."""
        return self._keys.get(root_key(self._job))

    def is_ours(self, root: KeyValue) -> bool:
        """Whether the root's key was created by this life of the agent, not by an earlier one."""
        born = self._born_revision
        return born is not None and root.value == self._agent and root.create_revision > born

    def term(self) -> int | None:
        """Return the term if this life of the agent is root: its key's create revision."""
        root = self.root()
        return root.create_revision if root is not None and self.is_ours(root) else None

    def plan(self) -> tuple[Plan | None, int]:
        """Return the plan as last seen and the revision of its last change; 0 if there is none."""
        found = self._keys.get(plan_key(self._job))
        return (None, 0) if found is None else (read_plan(found.value), found.mod_revision)

    def reports(self) -> list[AgentReport]:
        """Return every agent's report as last seen, by name."""
        return [read_report(text) for _, text in sorted(self._under(agents_prefix(self._job)))]

    def layouts(self) -> dict[str, str]:
        """Return the documents under the layout's prefix by rank."""
        return dict(sorted(self._under(layout_prefix(self._job))))

    def _under(self, prefix: str) -> list[tuple[str, str]]:
        named = ((_name(key, prefix), found.value) for key, found in self._keys.items())
        return [(name, text) for name, text in named if name]


def _name(key: str, prefix: str) -> str:
    """Return what follows the prefix; "" if the key is not under it."""
    return key[len(prefix) :] if key.startswith(prefix) else ""

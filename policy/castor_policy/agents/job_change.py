"""What a change of a job's key in the store means to its agents."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.events import (
    PersistChanged,
    PlanChanged,
    PlanLost,
    ReportChanged,
    RootChanged,
    StoreTrouble,
)
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import agents_prefix, persist_key, plan_key, root_key
from castor_policy.store import KeyValue, StoreEvent

JobChange: TypeAlias = (
    PlanChanged | PlanLost | RootChanged | PersistChanged | ReportChanged | StoreTrouble
)
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
        if value is None:
            return PlanLost(0)
        return PlanChanged(read_plan(value), event.mod_revision)
    if key == root_key(job):
        return RootChanged(value or "")
    if key == persist_key(job):
        return None if value is None else PersistChanged(int(value))
    agent = name_under(key, agents_prefix(job))
    if agent:
        return ReportChanged(agent, None if value is None else read_report(value))
    return None


def name_under(key: str, prefix: str) -> str:
    """Return what follows the prefix; "" if the key is not under it."""
    return key[len(prefix) :] if key.startswith(prefix) else ""

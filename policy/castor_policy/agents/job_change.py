"""What a change of a job's key in the store means to its agents."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.events import (
    HoldChanged,
    PersistChanged,
    PlanChanged,
    PlanLost,
    ReportChanged,
    RootChanged,
    StoreTrouble,
    WishChanged,
)
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import (
    agents_prefix,
    hold_key,
    persist_key,
    plan_key,
    root_key,
    wishes_prefix,
)
from castor_policy.agents.wish import Wish
from castor_policy.store import KeyValue, StoreEvent

JobChange: TypeAlias = (
    PlanChanged
    | PlanLost
    | RootChanged
    | PersistChanged
    | HoldChanged
    | WishChanged
    | ReportChanged
    | StoreTrouble
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
    agent = name_under(key, agents_prefix(job))
    told: JobChange | None = None
    if key == plan_key(job):
        told = PlanLost(0)
        if value is not None:
            told = PlanChanged(read_plan(value), event.mod_revision)
    elif key == root_key(job):
        told = RootChanged(value or "")
    elif agent:
        told = ReportChanged(agent, None if value is None else read_report(value))
    elif key.startswith(wishes_prefix(job)):
        told = WishChanged(key, None if value is None else Wish.from_json(value))
    elif value is not None and key == persist_key(job):
        told = PersistChanged(int(value))
    elif value is not None and key == hold_key(job):
        told = HoldChanged(int(value))
    return told


def name_under(key: str, prefix: str) -> str:
    """Return what follows the prefix; "" if the key is not under it."""
    return key[len(prefix) :] if key.startswith(prefix) else ""

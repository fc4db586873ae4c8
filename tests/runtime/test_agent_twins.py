"""The agents' two drivers, the runtime's and the simulator's, drive the very same objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from castor_policy.agents import (
    effects,
    lease_keeping,
    life,
    root,
    seen_documents,
    store_view,
    store_writes,
    worker,
)
from castor_runtime.agent import driver
from castor_runtime.agent import session as runtime_session
from castor_runtime.agent.worker_effects import WorkerEffects
from castor_runtime.launcher import job_view
from castor_sim.explore import agent
from castor_sim.explore import session as simulated_session
from castor_sim.explore.machine import carry_out

SESSIONS = (runtime_session, simulated_session)
DRIVERS = (driver, agent)


def imported_from_policy(module: ModuleType) -> Iterator[str]:
    """Yield the names that a module takes from the policy's agents."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("castor_policy"):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("session", SESSIONS)
def test_both_sessions_see_and_write_through_the_policys_objects(session: ModuleType) -> None:
    assert session.StoreView is store_view.StoreView
    assert session.store_writes is store_writes
    assert session.LeaseKeeper is lease_keeping.LeaseKeeper
    # What a key means, and what is compared before a write, is the policy's alone.
    known = set(imported_from_policy(session))
    assert not known & {"Compare", "Put", "root_key", "plan_key", "persist_key", "agents_prefix"}
    assert not known & {"PlanChanged", "RootChanged", "PersistChanged", "meaning"}
    assert not known & {"SessionOpened", "SessionRenewed", "SessionLost"}


@pytest.mark.parametrize("driven", DRIVERS)
def test_both_drivers_have_the_policys_worker_and_root(driven: ModuleType) -> None:
    assert driven.Worker is worker.Worker
    assert driven.Root is root.Root
    assert driven.AgentLife is life.AgentLife
    # What an event means to the root, and when there is one, is the policy's alone.
    known = set(imported_from_policy(driven))
    assert not known & {"take_office", "ReportChanged", "RootChanged", "StoreLost"}
    assert not set(imported_from_policy(driven)) & {"Compare", "Put", "root_key", "plan_key"}


def test_both_carry_every_effect_out() -> None:
    table = vars(WorkerEffects)["carry_out"].dispatcher
    assert set(table.registry) - {object} == set(get_args(effects.WorkerEffect))
    assert set(carry_out.registry) - {object} == set(get_args(effects.WorkerEffect))


def test_both_write_as_root_what_the_policy_says() -> None:
    assert agent.store_writes is runtime_session.store_writes


def test_who_only_looks_on_reads_the_keys_as_the_agents_do() -> None:
    assert job_view.meaning is seen_documents.meaning

"""What the agents write into the store, as transactions: the twins send these very ones.

A root's writes are fenced by its term, the create revision of the root's key (Gemini sec. 6.2): the
store refuses them once the key has gone or is another root's. An agent's report is fenced by the
last change of its key: see `own_report`.
"""

from __future__ import annotations

from castor_policy.agents.admission import Refusal, refused_prefix
from castor_policy.agents.effects import (
    AskHold,
    AskPersist,
    GrantWishes,
    RequestMachine,
    Resign,
    RootWrite,
    WritePlan,
)
from castor_policy.agents.own_report import ReportWrite
from castor_policy.agents.store_keys import (
    agents_prefix,
    hold_key,
    persist_key,
    plan_key,
    requests_prefix,
    root_key,
)
from castor_policy.agents.wish import Wish
from castor_policy.store import Compare, Delete, Put, Txn


def campaign(job: str, agent: str, lease: int) -> Txn:
    """Make `agent` root if there is none; its term is the create revision that a watch shows."""
    return create(root_key(job), agent, lease)


def create(key: str, value: str, lease: int | None = None) -> Txn:
    """Create a key; one that is there stays as it is."""
    return Txn((Compare(key, create_revision=0),), (Put(key, value, lease),))


def report(job: str, write: ReportWrite, lease: int) -> Txn:
    """Write an agent's report over what its writer knows there, to be gone with its lease.

    Nothing known there: this makes the key, and claims the agent's name with it.
    """
    key = agents_prefix(job) + write.report.agent
    operations: list[Put | Delete] = [Put(key, write.report.to_json(), lease)]
    if write.after == 0:
        operations.append(Delete(refused_prefix(job) + write.report.agent))  # mended since
    return Txn((Compare(key, mod_revision=write.after),), tuple(operations))


def refused(job: str, refusal: Refusal) -> Txn:
    """Leave word that an agent may not take part, until it may or the job is forgotten."""
    return Txn((), (Put(refused_prefix(job) + refusal.agent, refusal.to_json()),))


def wish(job: str, wanted: Wish) -> Txn:
    """Ask the job's root for something; a wish for the same that stands already is replaced."""
    return Txn((), (Put(wanted.key(job), wanted.to_json()),))


def end_term(job: str, term: int) -> Txn:
    """Take the root's key away, if it still has this term: of the root itself, or of a lost one."""
    return Txn((Compare(root_key(job), create_revision=term),), (Delete(root_key(job)),))


def root_write(job: str, agent: str, write: RootWrite) -> Txn:
    """Carry out what the root `agent` decided, if its term still is.

    A plan is also fenced by the revision of the one that it was decided on.
    """
    fence = Compare(root_key(job), create_revision=write.term)
    match write:
        case WritePlan(_, plan, after, grants):
            key = plan_key(job)
            put, done = Put(key, plan.to_json()), tuple(Delete(granted) for granted in grants)
            return Txn((fence, Compare(key, mod_revision=after)), (put, *done))
        case AskPersist(_, iteration):
            return Txn((fence,), (Put(persist_key(job), str(iteration)),))
        case AskHold(_, generation):
            return Txn((fence,), (Put(hold_key(job), str(generation)),))
        case GrantWishes(_, keys, after):
            known = Compare(plan_key(job), mod_revision=after)
            return Txn((fence, known), tuple(Delete(key) for key in keys))
        case Resign(term):
            return end_term(job, term)
        case RequestMachine():
            return Txn((fence,), (Put(requests_prefix(job) + write.request, agent),))

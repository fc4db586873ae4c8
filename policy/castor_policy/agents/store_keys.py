"""Under which keys the store has a job's documents."""

from __future__ import annotations


def root_key(job: str) -> str:
    """Key of the root's name, under the root's lease; its create revision is the term."""
    return f"/castor/{job}/root"


def plan_key(job: str) -> str:
    """Key of the `Plan`."""
    return f"/castor/{job}/plan"


def job_prefix(job: str) -> str:
    """Prefix of everything about the job."""
    return f"/castor/{job}/"


def spec_key(job: str) -> str:
    """Key of the `JobSpec`."""
    return f"/castor/{job}/spec"


def layout_prefix(job: str) -> str:
    """Prefix of the sizes of the ranks' parts, one key a rank, made by its first trainer."""
    return f"/castor/{job}/layout/"


def persist_key(job: str) -> str:
    """Key of the iteration that is to be persisted next."""
    return f"/castor/{job}/persist"


def agents_prefix(job: str) -> str:
    """Prefix of the `AgentReport`s, one key an agent."""
    return f"/castor/{job}/agents/"


def accounts_prefix(job: str) -> str:
    """Prefix of what the job's agents tell of it, one key an agent, for people and after its end.

    Not under `job_prefix`: agents watch that, and this is not for them.
    """
    return f"/castor/.accounts/{job}/"


def requests_prefix(job: str) -> str:
    """Prefix of requests for machines: one key each, deleted by the operator that serves it."""
    return f"/castor/{job}/requests/"

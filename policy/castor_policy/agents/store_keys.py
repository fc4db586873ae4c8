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


def asked_prefix(job: str) -> str:
    """Prefix of what is asked for while the job runs: by its user, and by the root for that."""
    return f"/castor/{job}/asked/"


def hold_key(job: str) -> str:
    """Key of the generation whose trainers are to hold after their next checkpoint."""
    return f"{asked_prefix(job)}hold"


def wishes_prefix(job: str) -> str:
    """Prefix of the `Wish`es, deleted by the root that has done what they ask for."""
    return f"{asked_prefix(job)}wishes/"


def agents_prefix(job: str) -> str:
    """Prefix of the `AgentReport`s, one key an agent."""
    return f"/castor/{job}/agents/"


def accounts_prefix(job: str) -> str:
    """Prefix of what the job's agents tell of it, one key an agent, for people and after its end.

    Not under `job_prefix`: agents watch that, and this is not for them.
    """
    return f"/castor/.accounts/{job}/"


def doctors_prefix(job: str) -> str:
    """Prefix of the cards of doctors that meet, one key a host, under its lease; not for agents."""
    return f"/castor/.doctors/{job}/"


def requests_prefix(job: str) -> str:
    """Prefix of requests for machines: one key each, deleted by the operator that serves it."""
    return f"/castor/{job}/requests/"

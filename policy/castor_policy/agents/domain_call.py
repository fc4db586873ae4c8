"""Failure domains of agents, asked for before there is a job: its placement is made from them.

Who starts a job that is to keep copies in different domains, and starts no agents itself, puts a
call into the store. Agents that wait for the job answer it with what their machines fail with; from
the first answers for all machines the placement is made, and then the job is put.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from castor_policy.agents.documents import Document
from castor_policy.agents.store_keys import job_prefix


@dataclass(frozen=True, slots=True)
class Answer(Document):
    """One agent's answer.

    Attributes:
        agent: its name.
        standby: it fills a machine only when one is lost.
        domain: what its machine fails with; "": it does not say.
    """

    agent: str
    standby: bool
    domain: str


def call_key(job: str) -> str:
    """Key that is there while domains are asked for."""
    return f"{job_prefix(job)}call"


def answers_prefix(job: str) -> str:
    """Prefix of the `Answer`s, one key an agent."""
    return f"{job_prefix(job)}answers/"


def called_domains(
    answers: Iterable[Answer], machines: int, *, standbys_too: bool
) -> tuple[int, ...] | None:
    """Return the domain of each machine by number, agents in the order in which they are seated.

    An agent that does not say its domain counts as being in one of its own. None: too few have
    answered.

    Args:
        answers: so far.
        machines: N.
        standbys_too: nobody else has come for long, so that standbys will fill places.
    """
    able = sorted(
        (one for one in answers if standbys_too or not one.standby),
        key=lambda one: (one.standby, one.agent),
    )
    if len(able) < machines:
        return None
    numbers: dict[str, int] = {}
    return tuple(
        numbers.setdefault(one.domain or f"\0{one.agent}", len(numbers)) for one in able[:machines]
    )

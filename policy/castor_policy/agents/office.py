"""Whether an agent is root, and what it starts from: as its view of the store has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_view import StoreView
from castor_policy.agents.wish import Wish


@dataclass(frozen=True, slots=True)
class Office:
    """One root's term as it begins.

    Attributes:
        term: create revision of the root's key.
        plan: the plan as read after the election.
        revision: of its last change; 0 if there is no plan.
        reports: the agents' reports as read with it.
        known: the newest plan that this agent has seen; `plan_repair` says what it is for.
        awaited: see `StoreView.awaited`.
        epoch: see `StoreView.epoch`.
        backup_revision: see `StoreView.backup_revision`.
        wishes: see `StoreView.wishes`.
        was_away: see `StoreView.was_away`.
    """

    term: int
    plan: Plan | None
    revision: int
    reports: Sequence[AgentReport]
    known: Plan | None = None
    awaited: Mapping[str, str] = field(default_factory=dict)
    epoch: int = 0
    backup_revision: int = 0
    wishes: Mapping[str, Wish] = field(default_factory=dict)
    was_away: bool = False

    @classmethod
    def seen_in(cls, view: StoreView, term: int) -> Office:
        """Return it as a view of the store has it now."""
        plan, revision = view.plan()
        return cls(
            term,
            plan,
            revision,
            view.reports(),
            known=view.known_plan(),
            awaited=dict(view.awaited),
            epoch=view.epoch,
            backup_revision=view.backup_revision,
            wishes=view.wishes(),
            was_away=view.was_away,
        )


@dataclass(frozen=True, slots=True)
class Tenure:
    """Whether one life of an agent is the job's root.

    Attributes:
        earlier_term: a term to be given up: one that an earlier life of this agent has left, or its
            own where others know of a later generation than it does; None if there is none.
        office: what this life starts from, or holds already; None: it is not root.
    """

    earlier_term: int | None
    office: Office | None

    @classmethod
    def seen_in(cls, view: StoreView) -> Tenure:
        """Return it as a view of the store has it now."""
        term = view.term_in_office()
        if term is not None and not view.may_campaign():
            return cls(term, None)
        return cls(view.earlier_term(), None if term is None else Office.seen_in(view, term))

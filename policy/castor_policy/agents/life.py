"""One life of one agent: its worker, and the root that it is while its term lasts.

Whoever drives an agent, with sockets or in a simulation, gives every event to both, in one order.
The worker takes its next event only when the effects of the one before are carried out. The root
never waits for that: what holds a machine up, even one whose trainers cannot be stopped or whose
memory cannot be read, does not keep its agent from deciding for the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from castor_policy.agents import transitions
from castor_policy.agents.effects import (
    Log,
    Resign,
    RootEffect,
    RootWrite,
    WorkerEffect,
    WritePlan,
)
from castor_policy.agents.events import (
    AgentEvent,
    ReportChanged,
    RootChanged,
    RootEvent,
    StoreLost,
    WorkerEvent,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office, Tenure
from castor_policy.agents.root import Root
from castor_policy.agents.transitions import Standing
from castor_policy.agents.worker import Worker
from castor_records.events.storing import RootElected

EffectT = TypeVar("EffectT", WorkerEffect, RootEffect)

WORKER, ROOT = "worker", "root"


@dataclass(frozen=True, slots=True)
class Taken:
    """An event that one of an agent's two machines takes in, with all that it goes by beside it.

    Attributes:
        by: `WORKER` or `ROOT`.
        event: what happened.
        now_s: the driver's steady clock.
        at_s: see `Root.handle`.
        tenure: who is root, where the event is that this has changed.
    """

    by: str
    event: AgentEvent
    now_s: float
    at_s: float | None = None
    tenure: Tenure | None = None


class Journal(Protocol):
    """Gets all that one life takes in, and what came of it; see `castor_policy.journal`."""

    def begin(self, life: AgentLife) -> None:
        """Take in a life that begins."""

    def took(
        self,
        life: AgentLife,
        taken: Taken,
        outcome: Sequence[WorkerEffect | RootEffect] | Exception,
    ) -> None:
        """Take in an event, and the effects or the error that it led to."""

    def write_failed(self, life: AgentLife) -> None:
        """Take in that the root has learnt that its write was not carried out."""


class AgentLife:
    """The worker and the root of one life of an agent.

    Args:
        worker: of this life.
        tenure: says whether this life is root now, by what it has seen of the store.
        validates: check after every event that both may be where they are (`transitions`); for
            tests and for exploring, where it raises an AssertionError if they may not.
        journal: gets all that this life takes in.

    Attributes:
        root: what this agent decides as root; None while it is not root.
    """

    def __init__(
        self,
        worker: Worker,
        tenure: Callable[[], Tenure],
        *,
        validates: bool = False,
        journal: Journal | None = None,
    ) -> None:
        self._validates = validates
        self.worker = worker
        self.root: Root | None = None
        self._tenure = tenure
        self._journal = journal
        if journal is not None:
            journal.begin(self)

    def obey(self, event: AgentEvent, now_s: float) -> list[WorkerEffect]:
        """Take an event in as a machine's worker; return what is to be done, in this order.

        Args:
            event: what happened.
            now_s: the driver's steady clock.
        """
        if isinstance(event, ReportChanged):
            return []
        if self._journal is None:
            return self._obey(event, now_s)
        return self._journaled(Taken(WORKER, event, now_s), lambda: self._obey(event, now_s))

    def _obey(self, event: WorkerEvent, now_s: float) -> list[WorkerEffect]:
        if not self._validates:
            return self.worker.handle(event, now_s)
        before = self.worker.standing
        effects = self.worker.handle(event, now_s)
        check_worker(self.worker, before, event)
        return effects

    def decide(
        self, event: AgentEvent, now_s: float, at_s: float | None = None
    ) -> list[RootEffect]:
        """Take an event in as the job's root, if this agent is; return what is to be done.

        Only once this life has its name.

        Args:
            event: what happened.
            now_s: the driver's steady clock.
            at_s: seconds from the job's start by the clock on the wall, see `Root.handle`.
        """
        tenure = self._tenure() if isinstance(event, RootChanged) else None
        if tenure is None and (self.root is None or not isinstance(event, RootEvent)):
            return []
        if self._journal is None:
            return self._decide(event, now_s, at_s, tenure)
        taken = Taken(ROOT, event, now_s, at_s, tenure)
        return self._journaled(taken, lambda: self._decide(event, now_s, at_s, tenure))

    def _decide(
        self, event: AgentEvent, now_s: float, at_s: float | None, tenure: Tenure | None
    ) -> list[RootEffect]:
        if tenure is not None:
            return self._take_office(tenure, now_s)
        assert self.root is not None, "who decides is root"
        assert isinstance(event, RootEvent), "a root is told no other"
        effects = self.root.handle(event, now_s, at_s)
        if self._validates:
            check_root(self.root, event, effects)
        return effects

    def _take_office(self, tenure: Tenure, now_s: float) -> list[RootEffect]:
        """Be root or no longer; end what an earlier life has left, which nobody has to wait for."""
        if tenure.earlier_term is not None:
            self.root = None
            return [Resign(tenure.earlier_term)]
        held = self.root
        self.root = take_office(self.worker.spec, tenure.office, held, now_s)
        if self.root is None or self.root is held:
            return []
        return [Log(RootElected(agent=self.worker.report.agent, term=self.root.term))]

    def _journaled(self, taken: Taken, take: Callable[[], list[EffectT]]) -> list[EffectT]:
        assert self._journal is not None
        try:
            effects = take()
        except Exception as error:
            self._journal.took(self, taken, error)
            raise
        self._journal.took(self, taken, effects)
        return effects

    def root_write_ended(
        self, write: RootWrite, root: Root | None, done: bool | None
    ) -> list[AgentEvent]:
        """Take in what came of a root's write; return what is to be handled next.

        Args:
            write: what was to be written.
            root: which root decided it: `root` as of when the write was begun.
            done: whether the store carried it out; None: it did not answer, and may yet do so.
        """
        if not done and isinstance(write, WritePlan | Resign) and root is not None:
            root.write_failed()
            if root is self.root and self._journal is not None:
                self._journal.write_failed(self)
        return [StoreLost()] if done is None else []


def check_worker(worker: Worker, before: Standing, event: AgentEvent) -> None:
    """Check that a worker may stand where this event has brought it.

    Raises:
        AssertionError: it may not.
    """
    if worker.standing != before:
        transitions.check(transitions.WORKER, before, event, worker.standing)
    worker.validate()


def check_root(root: Root, event: RootEvent, decided: Sequence[RootEffect]) -> None:
    """Check that a root may write what it has decided upon this event.

    Raises:
        AssertionError: it may not.
    """
    held = root.plan.phase if root.plan is not None else ""
    for effect in decided:
        if isinstance(effect, WritePlan):
            transitions.check(transitions.ROOT, held, event, effect.plan.phase)
    root.validate()


def take_office(
    spec: JobSpec, office: Office | None, held: Root | None, now_s: float
) -> Root | None:
    """Return the root that this agent is, as its view of the store says; None if it is none.

    Args:
        spec: the job.
        office: what it starts from, or holds already; None: it is not root.
        held: the root that it has been; it goes on while its term lasts.
        now_s: the driver's clock.
    """
    if office is None:
        return None
    if held is not None and (held.term, held.epoch) == (office.term, office.epoch):
        return held
    return Root(spec, office, now_s)

"""One life of one agent: its worker, and the root that it is while its term lasts.

Whoever drives an agent, with sockets or in a simulation, gives every event to both, in one order.
The worker takes its next event only when the effects of the one before are carried out. The root
never waits for that: what holds a machine up, even one whose trainers cannot be stopped or whose
memory cannot be read, does not keep its agent from deciding for the job.
"""

from __future__ import annotations

from collections.abc import Sequence

from castor_policy.agents import transitions
from castor_policy.agents.effects import (
    Log,
    Resign,
    RootEffect,
    RootWrite,
    WorkerEffect,
    WritePlan,
)
from castor_policy.agents.events import AgentEvent, ReportChanged, RootChanged, RootEvent, StoreLost
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office
from castor_policy.agents.root import Root
from castor_policy.agents.store_view import StoreView
from castor_policy.agents.transitions import Standing
from castor_policy.agents.worker import Worker
from castor_records.events.storing import RootElected


class AgentLife:
    """The worker and the root of one life of an agent.

    Args:
        worker: of this life.
        view: what this life has seen of the store; the session keeps it.
        validates: check after every event that both may be where they are (`transitions`); for
            tests and for exploring, where it raises an AssertionError if they may not.

    Attributes:
        root: what this agent decides as root; None while it is not root.
    """

    def __init__(self, worker: Worker, view: StoreView, *, validates: bool = False) -> None:
        self._validates = validates
        self.worker = worker
        self.root: Root | None = None
        self._view = view

    def obey(self, event: AgentEvent, now_s: float) -> list[WorkerEffect]:
        """Take an event in as a machine's worker; return what is to be done, in this order.

        Args:
            event: what happened.
            now_s: the driver's steady clock.
        """
        if isinstance(event, ReportChanged):
            return []
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
        effects: list[RootEffect] = []
        if isinstance(event, RootChanged):
            effects += self._take_office(now_s)
        if self.root is not None and isinstance(event, RootEvent):
            decided = self.root.handle(event, now_s, at_s)
            if self._validates:
                check_root(self.root, event, decided)
            effects += decided
        return effects

    def _take_office(self, now_s: float) -> list[RootEffect]:
        """Be root or no longer; end what an earlier life has left, which nobody has to wait for."""
        if (left := self._view.earlier_term()) is not None:
            self.root = None
            return [Resign(left)]
        held = self.root
        self.root = take_office(self.worker.spec, self._view, held, now_s)
        if self.root is None or self.root is held:
            return []
        return [Log(RootElected(agent=self.worker.report.agent, term=self.root.term))]

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


def take_office(spec: JobSpec, view: StoreView, held: Root | None, now_s: float) -> Root | None:
    """Return the root that this agent is, as its view of the store says; None if it is none.

    Args:
        spec: the job.
        view: of the agent.
        held: the root that it has been; it goes on while its term lasts.
        now_s: the driver's clock.
    """
    term = view.term()
    if term is None:
        return None
    if held is not None and (held.term, held.epoch) == (term, view.epoch):
        return held
    return Root(spec, Office.seen_in(view, term), now_s)

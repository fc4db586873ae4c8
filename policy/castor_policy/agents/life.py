"""One life of one agent: its worker, and the root that it is while its term lasts.

Whoever drives an agent, with sockets or in a simulation, puts events in here one at a time, carries
the effects of each out in order, and takes the next one only then. So the order in which an event
reaches the worker and the root is decided once.
"""

from __future__ import annotations

from castor_policy.agents.effects import Effect, Log, Resign, RootWrite, WritePlan
from castor_policy.agents.events import AgentEvent, ReportChanged, RootChanged, RootEvent, StoreLost
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.root import Root
from castor_policy.agents.store_view import StoreView
from castor_policy.agents.worker import Worker
from castor_policy.events import EventKind, Value


class AgentLife:
    """The worker and the root of one life of an agent.

    Args:
        worker: of this life.
        view: what this life has seen of the store; the session keeps it.

    Attributes:
        root: what this agent decides as root; None while it is not root.
    """

    def __init__(self, worker: Worker, view: StoreView) -> None:
        self.worker = worker
        self.root: Root | None = None
        self._view = view

    def handle(self, event: AgentEvent, now_s: float, at_s: float | None = None) -> list[Effect]:
        """Take an event in and return what is to be done, in this order.

        The worker comes first: a root on this machine decides on what its own worker has obeyed.

        Args:
            event: what happened.
            now_s: the driver's steady clock.
            at_s: seconds from the job's start by the clock on the wall, see `Root.handle`.
        """
        effects: list[Effect] = []
        if not isinstance(event, ReportChanged):
            effects += self.worker.handle(event, now_s)
        if isinstance(event, RootChanged):
            effects += self._take_office(now_s)
        if self.root is not None and isinstance(event, RootEvent):
            effects += self.root.handle(event, now_s, at_s)
        return effects

    def _take_office(self, now_s: float) -> list[Effect]:
        held = self.root
        self.root = take_office(self.worker.spec, self._view, held, now_s)
        if self.root is None or self.root is held:
            return []
        fields: dict[str, Value] = {"agent": self.worker.report.agent, "term": self.root.term}
        return [Log(EventKind.ROOT_ELECTED, fields)]

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
    plan, revision = view.plan()
    return Root(
        spec,
        term,
        plan,
        revision,
        view.reports(),
        now_s,
        known=view.known_plan(),
        awaited=view.awaited,
        epoch=view.epoch,
        backup_revision=view.backup_revision,
    )

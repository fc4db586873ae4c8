"""What a worker knows, what it says of itself in its report, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import Report, WorkerEffect
from castor_policy.agents.events import Inspected
from castor_policy.agents.evidence import Sight, strongest
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.leaving import Leaving
from castor_policy.agents.neighbours import Neighbour, Neighbours
from castor_policy.agents.parts import PartLoading
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_contact import StoreContact
from castor_policy.agents.transitions import Standing


class WorkerState:
    """One life of one agent, without what it does.

    Args:
        spec: the job.
        agent: its name.
        incarnation: unique to this life.
        address: host:port of its checkpoint server.
        standby: see `AgentReport.standby`.
        now_s: the driver's clock.
        left: for each rank the complete iterations that an earlier life has left in this agent's
            memory; a job that begins with them goes on from there.
        left_generation: the newest generation that completed any of them.
    """

    def __init__(
        self,
        spec: JobSpec,
        agent: str,
        incarnation: str,
        address: str,
        standby: bool,
        now_s: float,
        *,
        left: Mapping[int, tuple[int, ...]] | None = None,
        left_generation: int = 0,
    ) -> None:
        self.spec = spec
        self.report = AgentReport(
            agent,
            incarnation,
            standby,
            address,
            holdings={str(rank): held for rank, held in sorted((left or {}).items())},
            left_generation=left_generation,
        )
        self.plan: Plan | None = None
        self.machine: int | None = None
        self.generation = 0
        self._asked = 0
        self._inspected: Inspected | None = None
        self._parts: PartLoading | None = None
        self._may_remember = True
        self._may_checkpoint = False
        self._resumed: set[int] = set()
        self._ended: set[int] = set()
        self._progress = (0, 0)
        self._persist = self._persisted = 0
        self._hold = 0
        self._held: dict[int, int] = {}
        self._leaving = Leaving(agent, incarnation)
        self._neighbours = Neighbours()
        self._watched: tuple[Neighbour, ...] = ()
        self._root = ""
        self._root_is_lost = False
        self._contact = StoreContact(agent, spec.limits.lease_s, now_s)
        self._reported_s = now_s

    @property
    def renewed_s(self) -> float:
        """From when on, by the driver's clock, this agent counts the lease that it has."""
        return self._contact.renewed_s

    @property
    def standing(self) -> Standing:
        """Where it stands in its generation."""
        if self.machine is None:
            return Standing.IDLE
        if self._is_over():
            return Standing(self.report.state)
        if self._parts is not None:
            running = self.report.state == State.RUNNING
            return Standing.RUNNING if running else Standing.LOADING
        return Standing.GATHERING if self._inspected is None else Standing.GATHERED

    def validate(self) -> None:
        """Check what must hold between any two events; for tests and for exploring.

        Raises:
            AssertionError: it does not.
        """
        report, standing = self.report, self.standing
        assert report.generation <= self.generation, "it reports of a generation to come"
        if standing == Standing.IDLE:
            return
        assert self.machine is not None
        assert self.plan is not None, "its place is no plan's"
        own = set(self.spec.ranks_of(self.machine))
        assert self._resumed | self._ended | self._held.keys() <= own, (
            "trainers of other ranks answered"
        )
        assert self.plan.generation >= self.generation, "it is ahead of the plan"
        if standing in (Standing.RUNNING, Standing.FINISHED):
            assert own in (self._resumed, self._ended), "not all its trainers have loaded"
        if standing == Standing.FINISHED:
            assert self._ended == own, "not all its trainers have ended"
        if report.redundant and report.generation == self.generation:
            assert self._may_checkpoint, "replicas are told to be there before they are settled"

    def _take_note(self, plan: Plan) -> bool:
        """Take in that this plan is the newest; return whether it loads, which is news."""
        seen = self.report.load_seen
        loads = plan.generation if plan.phase == Phase.LOAD else seen
        self.plan = plan
        self.report = replace(self.report, plan_seen=plan.generation, load_seen=max(seen, loads))
        return loads > seen

    def _is_over(self) -> bool:
        """Whether this machine has nothing left to do in its generation."""
        over = self.report.state in (State.FAILED, State.FINISHED)
        return over and self.report.generation == self.generation

    def _fail(self, kind: str, reason: str) -> list[WorkerEffect]:
        return self._saw(Sight(-1, kind, reason))

    def _saw(self, sight: Sight) -> list[WorkerEffect]:
        """Fail, or say what else has failed: of each rank that of which there is one sight."""
        seen = self.report.seen if self.report.generation == self.generation else ()
        if any((one.rank, one.kind) == (sight.rank, sight.kind) for one in seen):
            return []
        seen = (*seen, sight)
        most, (iteration, complete) = strongest(seen), self._progress
        return self._change(
            state=State.FAILED,
            kind=most.kind,
            reason=most.text(),
            seen=seen,
            iteration=iteration,
            complete=complete,
        )

    def _change(self, **changes: object) -> list[WorkerEffect]:
        """Change the report; a report of a new generation starts from nothing."""
        if self.report.generation != self.generation:
            blank = AgentReport(
                self.report.agent,
                self.report.incarnation,
                self.report.standby,
                self.report.address,
                self.generation,
                persist_failure=self.report.persist_failure,
                load_seen=self.report.load_seen,
                plan_seen=self.report.plan_seen,
                unreached=self.report.unreached,
            )
            self.report = replace(blank, **changes)  # type: ignore[arg-type]  # fields of it
        else:
            self.report = replace(self.report, **changes)  # type: ignore[arg-type]  # as above
        return [Report(self.report)]

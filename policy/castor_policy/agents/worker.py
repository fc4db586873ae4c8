"""The worker: one on every machine; obeys the plan, and says what it sees in its report.

It decides alone only where nobody can be asked: it stops its trainers when it is cut off from the
store and from every peer for as long as its lease can have lasted, for then its place may have been
given away. Where only the store is silent it goes on: peers that answer know of no newer plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import (
    BEGIN_AGAIN,
    Campaign,
    DiscardOtherIterations,
    Exit,
    Finalise,
    Forget,
    Inspect,
    Log,
    Persist,
    PingPeers,
    Redundant,
    Report,
    StartTrainers,
    StopTrainers,
    WorkerEffect,
)
from castor_policy.agents.events import (
    Fetched,
    FetchFailed,
    Finalised,
    Inspected,
    MemoryRefused,
    NameTaken,
    PeersAnswered,
    PersistChanged,
    PersistEnded,
    PlanChanged,
    Progressed,
    RootChanged,
    SessionFailed,
    SessionLost,
    SessionOpened,
    SessionRenewed,
    StorageRead,
    StoreLost,
    StoreTrouble,
    TrainerEnded,
    TrainerHung,
    TrainerRefused,
    TrainerResumed,
    TrainersStanding,
    Verified,
    WorkerEvent,
)
from castor_policy.agents.evidence import FailureKind, Sight, sight_of_end, strongest
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.parts import PartLoading
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_contact import StoreContact
from castor_policy.recovery import Tier
from castor_records.events import failures

REPORT_PROGRESS_S = 1.0
"""The report's iteration is for people and for counting attempts: not worth a write each."""

_UNGATHERED = "this machine had not gathered for this plan"


NAME_TAKEN = 2
"""Exit code of an agent whose name is another's; nothing restarts it, and it frees no memory."""


class Worker:
    """One life of one agent.

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
        self._persist = 0
        self._contact = StoreContact(agent, spec.lease_s, now_s)
        self._reported_s = now_s

    @property
    def renewed_s(self) -> float:
        """From when on, by the driver's clock, this agent counts the lease that it has."""
        return self._contact.renewed_s

    # ---- events ------------------------------------------------------------------------------

    def handle(self, event: WorkerEvent, now_s: float) -> list[WorkerEffect]:  # noqa: C901, PLR0911, PLR0912 - one branch an event
        """Take an event in and return what is to be done, in this order."""
        match event:
            case SessionOpened(plan, sent_s):
                return self._session_opened(plan, sent_s)
            case SessionRenewed(sent_s):
                return [*self._contact.renewed(sent_s)]
            case SessionLost():
                self._contact.in_session = False
                return []
            case StoreLost():
                return self._store_lost()
            case NameTaken(by):
                # What is on this machine may be that one's by now: nothing is given back.
                return [StopTrainers(), Exit(NAME_TAKEN, f"the lease ended, and {by}")]
            case StoreTrouble(about, reason):
                return [*self._contact.trouble(about, reason)]
            case SessionFailed(reason):
                return [StopTrainers(), Exit(BEGIN_AGAIN, reason)]
            case PlanChanged(plan, _):
                return self._obey(plan)
            case RootChanged(agent):
                self._contact.root_changed(agent, now_s)
                return self._campaign(now_s)
            case PersistChanged(iteration):
                self._persist = iteration
                return self._persisting()
            case PersistEnded(_, reason):
                if reason == self.report.persist_failure:
                    return []
                self.report = replace(self.report, persist_failure=reason)
                return [Report(self.report)]
            case PeersAnswered(generations):
                return self._peers_answered(max(generations.values(), default=-1), now_s)
            case Progressed():
                return self._progressed(event, now_s)
            case _:
                pass
        if self._is_stale(event):
            return []
        match event:
            case Inspected():
                # A place may be taken and given back in one generation, its memory gone meanwhile.
                return self._gathered(event) if event.asked == self._asked else []
            case StorageRead(_, persistent):
                # Of a generation that has not gathered yet, or is of the past: nobody asks.
                gathered = self._inspected is not None
                return self._change(persistent=persistent) if gathered else []
            case TrainerResumed(_, rank):
                return self._trainer_resumed(rank)
            case TrainerEnded():
                return self._trainer_ended(event)
            case TrainerHung(_, rank, reason):
                return self._saw(Sight(rank, FailureKind.HANG, reason))
            case TrainersStanding(_, positions):
                # Who is missing is the root's to say: it sees the ranks of all machines.
                return self._change(
                    standing={str(rank): reached for rank, reached in sorted(positions.items())}
                )
            case MemoryRefused(_, reason):
                return self._fail(FailureKind.MEMORY, reason)
            case Finalised():
                return self._change(state=State.FINISHED)
            case Verified() | Fetched() | FetchFailed() | TrainerRefused():
                return self._part_event(event)
            case _:
                return self._tick(now_s)

    def _is_stale(self, event: WorkerEvent) -> bool:
        """Whether the event answers an earlier generation, or one that this machine gave up."""
        generation = getattr(event, "generation", None)
        if generation is None:
            return False
        if generation != self.generation or self.machine is None:
            return True
        if self.report.state == State.FAILED and isinstance(event, TrainerEnded | TrainerHung):
            return False  # who failed first is not always who failed first of all
        return self._is_over()

    def _is_over(self) -> bool:
        """Whether this machine has nothing left to do in its generation."""
        over = self.report.state in (State.FAILED, State.FINISHED)
        return over and self.report.generation == self.generation

    # ---- the session -------------------------------------------------------------------------

    def _session_opened(self, plan: Plan | None, sent_s: float) -> list[WorkerEffect]:
        self._contact.in_session = True
        effects: list[WorkerEffect] = [*self._contact.renewed(sent_s)]
        # What was decided meanwhile comes before anything else is done or said.
        if plan is not None:
            effects += self._obey(plan)
        return [*effects, Report(self.report)]

    def _store_lost(self) -> list[WorkerEffect]:
        return [*self._contact.lost()]

    def _tick(self, now_s: float) -> list[WorkerEffect]:
        return [*self._campaign(now_s), *self._watch_isolation(now_s)]

    def _campaign(self, now_s: float) -> list[WorkerEffect]:
        trains = self.machine is not None or (self.plan is None and not self.report.standby)
        return [Campaign()] if self._contact.may_stand(now_s, trains=trains) else []

    def _watch_isolation(self, now_s: float) -> list[WorkerEffect]:
        plan = self.plan
        if not self._contact.is_silent or plan is None or plan.phase != Phase.LOAD:
            return []
        if self.machine is None or self._is_over() or len(plan.agents) < 2:
            return []
        if self._contact.is_cut_off(now_s):
            cut_off = "cut off from the store and from every peer; the lease must have expired"
            return [*self._fail(FailureKind.ISOLATED, cut_off), StopTrainers()]
        if not self._contact.is_ping_due(now_s):
            return []
        peers = {m: a for m, a in enumerate(plan.addresses) if m != self.machine}
        return [PingPeers(peers)]

    def _peers_answered(self, newest_generation: int, now_s: float) -> list[WorkerEffect]:
        if newest_generation < 0:
            return []
        self._contact.peers_answered(now_s)
        if newest_generation <= self.generation or self._is_over():
            return []
        behind = f"a peer knows generation {newest_generation}; this machine was left behind"
        return [*self._fail(FailureKind.ISOLATED, behind), StopTrainers()]

    # ---- the plan ----------------------------------------------------------------------------

    def _obey(self, plan: Plan) -> list[WorkerEffect]:
        if self.plan is not None and plan.is_before(self.plan):
            return []
        self.plan = plan
        if plan.phase == Phase.FINISHED:
            return [StopTrainers(), Exit(0)]
        if plan.phase in (Phase.FAILED, Phase.STOPPED):
            return [StopTrainers(), Exit(1, plan.reason)]
        is_news = plan.phase == Phase.LOAD and self.report.load_seen < plan.generation
        if is_news:
            self.report = replace(self.report, load_seen=plan.generation)
        machine = plan.machine_of(self.report.agent, self.report.incarnation)
        if machine is None:
            return self._superseded(plan, is_news=is_news)
        if plan.phase == Phase.GATHER:
            return self._gather(plan, machine)
        return self._load(plan, machine)

    def _superseded(self, plan: Plan, *, is_news: bool) -> list[WorkerEffect]:
        had, self.machine = self.machine, None
        effects: list[WorkerEffect] = []
        if had is not None:
            self.generation, self._may_remember = plan.generation, True
            # Trainers first: whoever has this machine's place now must not meet them.
            effects += [StopTrainers(), *self._change(state=State.IDLE, holdings={})]
        elif is_news:
            effects.append(Report(self.report))
        # While it is not decided what is loaded from where, what is here may be the last of it.
        decided = plan.phase == Phase.LOAD and self.report.agent not in plan.agents
        if decided and self._may_remember:
            self._may_remember = False
            effects += [Forget(), *(self._change(holdings={}) if self.report.holdings else ())]
        return effects

    def _gather(self, plan: Plan, machine: int) -> list[WorkerEffect]:
        if plan.generation == self.generation and machine == self.machine:
            return []
        self._asked = self._asked + 1 if plan.generation == self.generation else 0
        self.generation, self.machine = plan.generation, machine
        self._inspected, self._parts = None, None
        self._may_checkpoint = False
        self._resumed, self._ended, self._progress = set(), set(), (0, 0)
        return [
            StopTrainers(),
            Inspect(plan.generation, machine, plan.thorough, self._asked),
        ]

    def _gathered(self, inspected: Inspected) -> list[WorkerEffect]:
        loaded = self.plan.loaded if self.plan is not None else ()
        if loaded and self.report.agent not in loaded and inspected.holdings:
            # The last generation was loaded without this machine: what is here is of the past.
            return [DiscardOtherIterations(None), *self._gathered(replace(inspected, holdings={}))]
        self._inspected = inspected
        return self._change(
            state=State.GATHERED,
            holdings={str(rank): held for rank, held in sorted(inspected.holdings.items())},
            persistent=inspected.persistent,
            rendezvous=inspected.rendezvous,
        )

    def _load(self, plan: Plan, machine: int) -> list[WorkerEffect]:
        if plan.generation == self.generation and self._parts is not None:
            return []  # read again: being carried out
        if plan.generation == self.generation and self._is_over():
            return []
        known = self._inspected
        if known is None or known.generation != plan.generation or machine != self.machine:
            self.generation, self.machine = plan.generation, machine
            return [StopTrainers(), *self._fail(FailureKind.START, _UNGATHERED)]
        in_memory = plan.tier in (Tier.OWN_MEMORY, Tier.PEER)
        self._parts = PartLoading(self.spec, plan, machine, known.holdings)
        self._contact.ask_anew()
        return [
            DiscardOtherIterations(plan.iteration if in_memory else None),
            StartTrainers(plan, machine),
            *self._change(state=State.LOADING, holdings={}),
            *self._parts.begin(),
            *self._settled(),
            *self._persisting(),
        ]

    # ---- parts and trainers ------------------------------------------------------------------

    def _part_event(
        self, event: Verified | Fetched | FetchFailed | TrainerRefused
    ) -> list[WorkerEffect]:
        if self._parts is None:
            return []
        effects = self._parts.handle(event)
        if self._parts.failed:
            return [*effects, *self._fail(self._parts.kind, self._parts.failed)]
        return [*effects, *self._settled()]

    def _settled(self) -> list[WorkerEffect]:
        if self._parts is None or not self._parts.settled or self._may_checkpoint:
            return []
        self._may_checkpoint = True
        told: list[WorkerEffect] = [Redundant(self.generation)]
        # What came from storage, or from the start, is in no memory before the next checkpoint is.
        return [*told, *self._redundant()] if self._parts.whole else told

    def _redundant(self) -> list[WorkerEffect]:
        assert self.machine is not None, "it has parts, so it fills a machine"
        logged = failures.Redundant(generation=self.generation, machine=self.machine)
        return [Log(logged), *self._change(redundant=True)]

    def _trainer_resumed(self, rank: int) -> list[WorkerEffect]:
        self._resumed.add(rank)
        if len(self._resumed) < self.spec.ranks_per_machine:
            return []
        return self._change(state=State.RUNNING)

    def _trainer_ended(self, event: TrainerEnded) -> list[WorkerEffect]:
        if event.code or event.left_early:
            return self._saw(
                sight_of_end(
                    event.rank,
                    event.code,
                    event.reason,
                    lost_peer=event.lost_peer,
                    left_early=event.left_early,
                )
            )
        self._ended.add(event.rank)
        told = self._change(ended=tuple(sorted(self._ended)))
        if len(self._ended) < self.spec.ranks_per_machine:
            return told
        return [*told, Finalise(self.generation)]

    def _progressed(self, event: Progressed, now_s: float) -> list[WorkerEffect]:
        if event.generation != self.generation or self.plan is None:
            return []
        effects: list[WorkerEffect] = []
        if (
            not self.report.redundant
            and event.agreed > self.plan.iteration
            and self._may_checkpoint
        ):
            effects += self._redundant()
        # Without checkpoints there is nothing to complete.
        complete = event.iteration if self.spec.scheme == "none" else event.agreed
        self._progress = (event.iteration, complete)
        newer = self._progress > (self.report.iteration, self.report.complete)
        first = self.report.iteration == 0 or self.report.complete <= self.plan.iteration < complete
        if newer and (first or now_s - self._reported_s >= REPORT_PROGRESS_S):
            self._reported_s = now_s
            effects += self._change(iteration=event.iteration, complete=complete)
        return effects

    def _persisting(self) -> list[WorkerEffect]:
        plan = self.plan
        if self._parts is None or plan is None or self._persist <= plan.iteration:
            return []
        return [Persist(self.generation, self._persist)]

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
            )
            self.report = replace(blank, **changes)  # type: ignore[arg-type]  # fields of it
        else:
            self.report = replace(self.report, **changes)  # type: ignore[arg-type]  # as above
        return [Report(self.report)]

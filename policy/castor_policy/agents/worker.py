"""The worker: one on every machine; obeys the plan, and says what it sees in its report.

It decides alone only where nobody can be asked: see `worker_contact`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from castor_policy.agents.agent_report import State
from castor_policy.agents.effects import (
    DiscardOtherIterations,
    Exit,
    Finalise,
    Forget,
    Inspect,
    Log,
    ParkTrainers,
    Redundant,
    Report,
    StartTrainers,
    StopFetching,
    StopTrainers,
    WorkerEffect,
)
from castor_policy.agents.event_table import EventTable
from castor_policy.agents.events import (
    Fetched,
    FetchFailed,
    Finalised,
    Inspected,
    MemoryRefused,
    PlanChanged,
    PlanLost,
    Progressed,
    SessionOpened,
    StorageRead,
    Tick,
    TrainerEnded,
    TrainerHeld,
    TrainerHung,
    TrainerLostPeer,
    TrainerRefused,
    TrainerResumed,
    TrainersStanding,
    Verified,
    WorkerEvent,
)
from castor_policy.agents.evidence import Sight, SightKind, sight_of_end
from castor_policy.agents.exit_codes import DO_NOT_REQUEUE, FINISHED, GIVEN_UP
from castor_policy.agents.parts import PartLoading
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.worker_asked import WorkerAsked
from castor_policy.job_options import DEGRADED
from castor_policy.recovery import Tier
from castor_records.events import failures

REPORT_PROGRESS_S = 1.0
"""The report's iteration is for people and for counting attempts: not worth a write each."""

MOST_PROGRESS_PER_S = 50.0
"""All machines together write so often for that, however many they are."""

_UNGATHERED = "this machine had not gathered for this plan"


class Worker(WorkerAsked):
    """One life of one agent; see `WorkerState` for what it is made with."""

    _takes: ClassVar[EventTable[WorkerEffect]] = EventTable(WorkerAsked._takes)

    # ---- events ------------------------------------------------------------------------------

    def handle(self, event: WorkerEvent, now_s: float) -> list[WorkerEffect]:
        """Take an event in and return what is to be done, in this order."""
        if self._takes.is_answer(event) and self._is_stale(event):
            return []
        return self._takes.take(self, event, now_s)

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

    # ---- the session -------------------------------------------------------------------------

    @_takes.on(SessionOpened)
    def _session_opened(self, event: SessionOpened, _: float) -> list[WorkerEffect]:
        self._contact.in_session = True
        effects: list[WorkerEffect] = [*self._contact.renewed(event.sent_s)]
        # What was decided meanwhile comes before anything else is done or said.
        if event.plan is not None:
            effects += self._obey(event.plan)
        return [*effects, Report(self.report)]

    @_takes.on(Tick, PlanLost)
    def _tick(self, _: Tick | PlanLost, now_s: float) -> list[WorkerEffect]:
        leaves = self._leaving.due(now_s, is_needed=self._is_needed())
        told = self._progress_due(now_s)
        asked = [*self._campaign(now_s), *self._depose(), *self._watch_isolation(now_s)]
        return [*told, *asked, *leaves]

    # ---- the plan ----------------------------------------------------------------------------

    @_takes.on(PlanChanged)
    def _plan_changed(self, event: PlanChanged, _: float) -> list[WorkerEffect]:
        return self._obey(event.plan)

    def _obey(self, plan: Plan) -> list[WorkerEffect]:
        if self.plan is not None and plan.is_before(self.plan):
            return []
        is_news = self._take_note(plan)
        if plan.phase == Phase.FINISHED:
            return [StopTrainers(), Exit(FINISHED)]
        if plan.phase in (Phase.FAILED, Phase.STOPPED):
            stopped = plan.phase == Phase.STOPPED
            return [StopTrainers(), Exit(DO_NOT_REQUEUE if stopped else GIVEN_UP, plan.reason)]
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
            self._neighbours.leave()
        elif is_news:
            effects.append(Report(self.report))
        if is_news:
            self._neighbours.follow(plan, None)
        effects += self._look_around()
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
        stays = machine == self.machine
        self.generation, self.machine = plan.generation, machine
        self._inspected, self._parts = None, None
        self._may_checkpoint = False
        self._resumed, self._ended, self._progress = set(), set(), (0, 0)
        self._held = {}
        return [
            ParkTrainers() if stays else StopTrainers(),
            Inspect(plan.generation, machine, plan.thorough, self._asked),
        ]

    @_takes.on(Inspected, answer=True)
    def _has_inspected(self, event: Inspected, _: float) -> list[WorkerEffect]:
        # A place may be taken and given back in one generation, its memory gone meanwhile.
        return self._gathered(event) if event.asked == self._asked else []

    @_takes.on(StorageRead, answer=True)
    def _storage_read(self, event: StorageRead, _: float) -> list[WorkerEffect]:
        # Of a generation that has not gathered yet, or is of the past: nobody asks.
        gathered = self._inspected is not None
        return self._change(persistent=event.persistent) if gathered else []

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
            parked=inspected.parked,
        )

    def _load(self, plan: Plan, machine: int) -> list[WorkerEffect]:
        if plan.generation == self.generation and self._parts is not None:
            return []  # read again: being carried out
        if plan.generation == self.generation and self._is_over():
            return []
        known = self._inspected
        if known is None or known.generation != plan.generation or machine != self.machine:
            self.generation, self.machine = plan.generation, machine
            return [StopTrainers(), *self._fail(SightKind.START, _UNGATHERED)]
        in_memory = plan.tier in (Tier.OWN_MEMORY, Tier.PEER)
        self._parts = PartLoading(self.spec, plan, machine, known.holdings)
        self._contact.ask_anew()
        self._neighbours.follow(plan, machine)
        return [
            DiscardOtherIterations(plan.iteration if in_memory else None),
            StartTrainers(plan, machine),
            *self._look_around(),
            *self._change(state=State.LOADING, holdings={}, parked=()),
            *self._parts.begin(),
            *self._settled(),
            *self._persisting(),
            *self._holding(),
        ]

    # ---- parts and trainers ------------------------------------------------------------------

    @_takes.on(Verified, Fetched, FetchFailed, TrainerRefused, answer=True)
    def _part_event(
        self, event: Verified | Fetched | FetchFailed | TrainerRefused, _: float
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

    def _replicated(self) -> list[WorkerEffect]:
        """A checkpoint has brought all replicas here, also what is still being fetched."""
        stopped: list[WorkerEffect] = []
        if not self._may_checkpoint:
            assert self._parts is not None, "its trainers have loaded them"
            self._parts.give_up_fetching()
            self._may_checkpoint = True
            stopped = [StopFetching(self.generation), Redundant(self.generation)]
        return [*stopped, *self._redundant()]

    def _redundant(self) -> list[WorkerEffect]:
        assert self.machine is not None, "it has parts, so it fills a machine"
        logged = failures.Redundant(generation=self.generation, machine=self.machine)
        return [Log(logged), *self._change(redundant=True)]

    @_takes.on(TrainerResumed, answer=True)
    def _trainer_resumed(self, event: TrainerResumed, _: float) -> list[WorkerEffect]:
        self._resumed.add(event.rank)
        if len(self._resumed) < self.spec.ranks_per_machine:
            return []
        told: list[WorkerEffect] = []
        if self._trains_degraded():
            assert self.machine is not None, "its trainers have a place"
            told = [Log(failures.Degraded(generation=self.generation, machine=self.machine))]
        return [*told, *self._change(state=State.RUNNING)]

    def _trains_degraded(self) -> bool:
        """Whether checkpoints may be taken while replicas that belong here are still fetched."""
        return self.spec.recovery.redundancy == DEGRADED and not self._may_checkpoint

    @_takes.on(TrainerHeld, answer=True)
    def _trainer_held(self, event: TrainerHeld, _: float) -> list[WorkerEffect]:
        self._held[event.rank] = event.iteration
        if len(self._held) < self.spec.ranks_per_machine:
            return []
        held = min(self._held.values())
        persisted = held if self._persisted == held else 0
        # What was not persisted before is no word on this one.
        self.report = replace(self.report, persist_failure="", in_vain=0)
        return self._change(held=held, iteration=held, complete=held, persisted=persisted)

    @_takes.on(TrainerHung, answer=True)
    def _trainer_hung(self, event: TrainerHung, _: float) -> list[WorkerEffect]:
        return self._saw(Sight(event.rank, SightKind.HANG, event.reason))

    @_takes.on(TrainerLostPeer, answer=True)
    def _trainer_lost_peer(self, event: TrainerLostPeer, _: float) -> list[WorkerEffect]:
        return self._saw(Sight(event.rank, SightKind.CONNECTION, f"lost a peer: {event.reason}"))

    @_takes.on(TrainersStanding, answer=True)
    def _trainers_standing(self, event: TrainersStanding, _: float) -> list[WorkerEffect]:
        # Who is missing is the root's to say: it sees the ranks of all machines.
        return self._change(
            standing={str(rank): reached for rank, reached in sorted(event.positions.items())}
        )

    @_takes.on(MemoryRefused, answer=True)
    def _memory_refused(self, event: MemoryRefused, _: float) -> list[WorkerEffect]:
        return self._fail(SightKind.MEMORY, event.reason)

    @_takes.on(Finalised, answer=True)
    def _finalised(self, event: Finalised, _: float) -> list[WorkerEffect]:
        reached = event.iteration
        return self._change(state=State.FINISHED, iteration=reached, complete=reached)

    @_takes.on(TrainerEnded, answer=True)
    def _trainer_ended(self, event: TrainerEnded, _: float) -> list[WorkerEffect]:
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

    @_takes.on(Progressed)
    def _progressed(self, event: Progressed, now_s: float) -> list[WorkerEffect]:
        if event.generation != self.generation or self.plan is None:
            return []
        effects: list[WorkerEffect] = []
        if (
            not self.report.redundant
            and event.agreed > self.plan.iteration
            and (self._may_checkpoint or self._trains_degraded())
        ):
            effects += self._replicated()
        # Without checkpoints there is nothing to complete.
        complete = event.iteration if self.spec.traffic.scheme == "none" else event.agreed
        self._progress = (event.iteration, complete)
        return [*effects, *self._progress_due(now_s)]

    def _progress_due(self, now_s: float) -> list[WorkerEffect]:
        """Say how far this machine is: seldom, and not when all others do."""
        iteration, complete = self._progress
        if self.plan is None or self._progress <= (self.report.iteration, self.report.complete):
            return []
        first = self.report.iteration == 0 or self.report.complete <= self.plan.iteration < complete
        every_s = max(REPORT_PROGRESS_S, self.spec.machines / MOST_PROGRESS_PER_S)
        if not (first or now_s - self._reported_s >= every_s):
            return []  # a tick will say it
        # All say at once that they have begun; what follows is spread evenly over the time.
        place = (self.machine or 0) / self.spec.machines
        self._reported_s = now_s - first * place * (every_s - REPORT_PROGRESS_S)
        return self._change(iteration=iteration, complete=complete)

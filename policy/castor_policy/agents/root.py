"""The root: one agent decides for the job, and every decision is a write of the plan.

The root keeps nothing that is not in the store, apart from times: whoever is elected after it reads
the plan and the reports, and goes on where it stopped. A plan is written in the root's term and
the store refuses it once another root has been elected (invariant 6).

A report is counted (`roll_call`); all machines are looked at only where it may decide something.

A generation goes GATHER -> LOAD -> FINISHED. Machines are filled, and filled again, during GATHER,
when no trainer runs; a failure during LOAD starts the next generation. So another failure during a
recovery, the death of a standby, and the death of the root need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from castor_policy.agents.admission import largest_of_one_script, scripts_apart
from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.attempts import counted
from castor_policy.agents.beginning import (
    BEGIN_WITHOUT_S,
    first_generation,
    first_plan,
    nothing_kept,
)
from castor_policy.agents.culprit import Verdict, judge, window_s
from castor_policy.agents.effects import AskPersist, Log, Resign, RootEffect
from castor_policy.agents.events import (
    PlanChanged,
    PlanLost,
    ReportChanged,
    RootEvent,
    Tick,
    WishChanged,
)
from castor_policy.agents.filling import fill_every_s
from castor_policy.agents.fitness import refused, worn_out
from castor_policy.agents.following import following, put_aside
from castor_policy.agents.gathering import (
    awaited,
    decided,
    has_gathered,
    in_all_storage,
    storage_silent,
)
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.plan_repair import is_awaited, later, newest_generation, repaired
from castor_policy.agents.root_state import RootState
from castor_policy.agents.seating import holds_parts, kept_iteration, seats
from castor_policy.agents.standstill import Standstill, standstill
from castor_policy.agents.wishes import given_away, handed_over, held_by_all, stopped
from castor_records.events.failures import Planned


class Root(RootState):
    """Decisions of one root during one term; see `RootState` for what it is made with."""

    def handle(self, event: RootEvent, now_s: float, at_s: float | None = None) -> list[RootEffect]:
        """Take an event in and return what is to be done.

        Args:
            event: what happened.
            now_s: the driver's steady clock.
            at_s: seconds from the job's start by the clock on the wall, which roots share;
                None: `now_s` does.
        """
        self._at_s = now_s if at_s is None else at_s
        told: list[RootEffect] = []
        looks = self._must_look
        match event:
            case PlanChanged(plan, revision) if revision > self._revision:
                told += self._shown(plan, revision, now_s)
                looks = True
            case PlanLost(revision):
                self._lost(revision)
                looks = True
            case ReportChanged(agent, report):
                looks |= self._roll_call.take(agent, report, is_asked=bool(self._wishes))
                if report is not None:
                    self._patience.heard(report)
            case Tick() if self._roll_call.is_calm and not (looks or self._wishes):
                return self._go_on(now_s)
            case Tick():
                looks = True
            case WishChanged(key, wish):
                self._wishes.changed(key, wish)
                looks = True
            case _:
                pass
        self._must_look = False
        return [*told, *(self._decide(now_s) if looks else ())]

    def _go_on(self, now_s: float) -> list[RootEffect]:
        """Return what is due by time alone while all machines train."""
        self._patience.wait(now_s, {})
        if self._pending is not None or self._resigned:
            return []
        return self._persist(now_s)

    def _decide(self, now_s: float) -> list[RootEffect]:
        if self._pending is not None or self._resigned:
            return []  # one write at a time: the next decision is taken on what the store holds
        mended = self._mend(now_s)
        if mended is not None:
            return mended
        plan = self.plan
        if self._wishes.ends_at_once() and not (plan is not None and plan.is_over):
            return self._stop()
        if plan is None or plan.begins_anew:
            return self._begin(now_s)
        if plan.is_over:
            return []
        self._give_up_unreached(plan)
        return (self._gather if plan.phase == Phase.GATHER else self._watch)(plan, now_s)

    def _mend(self, now_s: float) -> list[RootEffect] | None:
        """Return what is to be done where the store has lost the plan (`plan_repair`); or None."""
        newest = later(self.plan, self._known)
        if self._may_come_back(now_s) and is_awaited(newest, self._awaited, self.reports):
            return []
        is_backups = 0 < self._revision <= self._backup_revision
        plan = repaired(self.plan, self._known, self.reports, is_backups=is_backups)
        if plan is not None:
            return self._write(plan)
        if newest is None and newest_generation(self.reports):
            self._resigned = True
            return [Resign(self.term)]
        return None

    def _may_come_back(self, now_s: float) -> bool:
        """Whether who was there before the store was away has not had a lease's time to return."""
        return now_s < self._since_s + self.spec.limits.lease_s

    # ---- the first generation -------------------------------------------------------------

    def _begin(self, now_s: float) -> list[RootEffect]:
        if self._was_away and self._may_come_back(now_s):
            return []  # whoever knows of a plan may be on the way
        waited = now_s - self._since_s >= BEGIN_WITHOUT_S
        free = self._free_agents(None, ())
        if self.spec.resumes and not kept_iteration(self.spec, free):
            return self._await_kept(now_s)
        able = [r for r in free if waited or not r.standby or holds_parts(r)]
        ready = largest_of_one_script(able)
        if len(ready) < self.spec.machines:
            missing = range(len(ready), self.spec.machines) if waited else range(0)
            return self._filling.request([(machine, f"0-{machine}") for machine in missing], now_s)
        seated = seats(self.spec, ready, range(self.spec.machines))
        generation = first_generation(self.spec, self.plan, self.reports.values())
        return self._write(*first_plan(self.spec, self.term, generation, self.plan, seated))

    def _await_kept(self, now_s: float) -> list[RootEffect]:
        """Wait for the agents that hold what the job was to go on from; not without a bound."""
        if now_s - self._since_s < self.spec.recovery.gather_s:
            return []
        generation = first_generation(self.spec, self.plan, self.reports.values())
        return self._write(nothing_kept(self.spec, self.term, generation))

    # ---- GATHER: fill machines, learn what is held, decide ----------------------------------

    def _gather(self, plan: Plan, now_s: float) -> list[RootEffect]:
        members = self._members(plan)
        if unable := refused(plan, members):
            return self._put_aside(plan, unable, now_s)
        self._give_up_silent(plan, now_s)
        lost = any(r is None and plan.agents[m] for m, r in enumerate(members))
        if lost and now_s - self._planned_s < fill_every_s(self.spec.machines):
            return []  # others may be lost with them
        filled, effects = self._fill(plan, now_s)
        if (filled.agents, filled.incarnations) != (plan.agents, plan.incarnations):
            return self._write(filled, effects)
        reports = self._members(plan)
        gathered = [r for r in reports if r is not None and has_gathered(plan, r)]
        if len(gathered) < self.spec.machines:
            return effects
        if apart := scripts_apart(gathered):
            waiting = replace(plan, waits_for=apart)
            return effects if waiting == plan else self._write(waiting, effects)
        return [*effects, *self._choose(plan, gathered, now_s)]

    def _choose(
        self, plan: Plan, gathered: Sequence[AgentReport], now_s: float
    ) -> list[RootEffect]:
        """Decide what to load, by what all machines hold."""
        chosen = decided(self.spec, self._placement, plan, gathered)
        if chosen is None:
            if self._storage_overdue:
                failed = replace(plan, phase=Phase.FAILED, reason=storage_silent(self.spec))
                return self._write(failed)
            return []
        chosen = counted(self.spec, plan, chosen)
        if chosen.phase == Phase.FAILED:
            return self._write(chosen)
        free = self._free_agents(plan, plan.agents)
        worn = worn_out(self.spec, self._placement, plan, chosen, gathered, free)
        if worn:
            return self._put_aside(plan, worn, now_s)
        self._persist_rounds.found(in_all_storage(gathered), now_s)
        planned = Planned(
            generation=plan.generation,
            iteration=chosen.iteration,
            tier=chosen.tier,
            term=self.term,
        )
        return self._write(chosen, [Log(planned)])

    def _give_up_silent(self, plan: Plan, now_s: float) -> None:
        """Stop waiting for machines that have had their time; they count as lost from then on."""
        members = self._members(plan)
        overdue = self._patience.wait(now_s, awaited(self.spec, plan, members))
        unread = [one for one in overdue if one.step == "storage"]
        # Where nobody can read storage it is no machine's fault.
        self._storage_overdue = len(unread) == self.spec.machines
        for one in () if self._storage_overdue else overdue:
            report = members[one.machine]
            if report is not None:
                self._patience.give_up(report, one.step)

    def _put_aside(self, plan: Plan, reasons: Mapping[int, str], now_s: float) -> list[RootEffect]:
        """Give these machines' places to others, within the generation."""
        effects: list[RootEffect] = []
        for machine, reason in sorted(reasons.items()):
            plan, told = put_aside(plan, machine, reason)
            effects.append(told)
        filled, filling = self._fill(plan, now_s)
        return self._write(filled, [*effects, *filling])

    def _fill(self, plan: Plan, now_s: float) -> tuple[Plan, list[RootEffect]]:
        """Give every machine without a live agent one, or ask for one."""
        known = {name: self._live(name) for name in self.reports}
        free = self._free_agents(plan, plan.agents)
        doubted = [one for one in free if self._is_doubted(one)]
        sure = [one for one in free if one not in doubted]
        return self._filling.fill(plan, known, sure, now_s, self._at_s, doubted, self._how_lost)

    # ---- LOAD: watch over the trainers -------------------------------------------------------

    def _watch(self, plan: Plan, now_s: float) -> list[RootEffect]:
        self._give_up_silent(plan, now_s)
        members = self._members(plan)
        current = [r for r in members if r is not None and r.generation == plan.generation]
        still = standstill(self.spec, current)
        failed = any(report.state == State.FAILED for report in current)
        if None in members or failed or still is not None:
            return self._failed(plan, members, current, still, now_s)
        if len(current) == self.spec.machines and all(
            report.state == State.FINISHED for report in current
        ):
            reached = min(report.iteration for report in current)
            finished = replace(plan, phase=Phase.FINISHED, reason="finished", reached=reached)
            return self._write(finished)
        return self._serve(plan, current, now_s)

    # ---- what the job's user asks for ----------------------------------------------------------

    def _stop(self) -> list[RootEffect]:
        """End the job, however far it is."""
        nobody = ("",) * self.spec.machines
        plan = self.plan or Plan(1, self.term, Phase.GATHER, nobody, nobody)
        members = [self._live(name) for name in plan.agents]
        current = [r for r in members if r is not None and r.generation == plan.generation]
        return self._write(stopped(plan, current), (), self._wishes.keys_of_stop())

    def _serve(self, plan: Plan, current: Sequence[AgentReport], now_s: float) -> list[RootEffect]:
        """Do what is asked for, as far as the machines have come; have checkpoints persisted."""
        wishes = self._wishes
        if not wishes and not any(report.held for report in current):
            return self._persist(now_s)
        if iteration := wishes.stops_at(current):
            return self._write(stopped(plan, current, iteration), (), wishes.keys_of_stop())
        takers = sum(
            one.script == plan.script and not self._is_doubted(one)
            for one in self._free_agents(plan, plan.agents)
        )
        leaving = wishes.leaving(plan, self._placement, takers)
        held = held_by_all(self.spec, current)
        if held and not wishes.keeps_holding(current):
            filled, filling = self._fill(handed_over(plan, held, leaving), float("-inf"))
            return self._write(filled, [*given_away(plan, held, leaving), *filling])
        effects: list[RootEffect] = [*wishes.ask(plan, self._revision, current, leaving, now_s)]
        wanted = [(m, f"{plan.generation}-{m}") for m in wishes.waiting(plan, takers)]
        effects += self._filling.request(wanted, now_s)
        return effects if effects or held else self._persist(now_s)

    def _persist(self, now_s: float) -> list[RootEffect]:
        iteration = self._persist_rounds.due(self._roll_call.newest_iteration, now_s)
        return [] if iteration is None else [AskPersist(self.term, iteration)]

    # ---- failures ------------------------------------------------------------------------------

    def _failed(
        self,
        plan: Plan,
        members: Sequence[AgentReport | None],
        current: Sequence[AgentReport],
        still: Standstill | None,
        now_s: float,
    ) -> list[RootEffect]:
        """Judge what failed, at once or when all have said what they saw of it."""
        if self._failed_since is None or self._failed_since[0] != plan.generation:
            self._failed_since = (plan.generation, now_s)
        lost = {
            machine: self._how_lost(plan.agents[machine])
            for machine, report in enumerate(members)
            if report is None
        }
        told = {machine: report for machine, report in enumerate(members) if report is not None}
        verdict = judge(self.spec, plan, lost, told, still)
        waited_s = now_s - self._failed_since[1]
        if not verdict.certain and waited_s < window_s(self.spec):
            return []
        return self._next_generation(plan, verdict, current)

    def _next_generation(
        self, plan: Plan, verdict: Verdict, current: Sequence[AgentReport]
    ) -> list[RootEffect]:
        next_plan, told = following(
            self.spec,
            plan,
            verdict,
            current,
            {report.agent: report.incarnation for report in self.reports.values()},
            self._at_s,
            is_replaceable=bool(self._free_agents(plan, plan.agents)),
        )
        if next_plan.phase == Phase.FAILED:
            return self._write(next_plan, told)
        # Machines are filled in the same write: with a standby at hand there is one round only.
        filled, filling = self._fill(next_plan, float("-inf"))
        return self._write(filled, [*told, *filling])

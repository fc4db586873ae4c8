"""Which machines of a plan are without an agent, who fills them, and which ones are asked for.

1. A machine is lost when its agent has left the store, or was given up because it never answered or
   its neighbours have lost it.
2. A lost machine is told of where its place is filled, by the plan and in the event log alike.
3. Who was given up because storage did not answer it, or because it was cut off, may be so again:
   it fills a place if nobody else does, and a machine is asked for none the less.
4. Whoever is free fills an empty place (`seating` says who); for a place that stays empty a machine
   is asked for, and asked for again once nobody has come for `REQUEST_AGAIN_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.culprit import detected, how_lost
from castor_policy.agents.effects import Log, RequestMachine, RootEffect
from castor_policy.agents.events import TICK_S
from castor_policy.agents.evidence import Culprit, SightKind
from castor_policy.agents.fitness import remembered
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.agents.seating import newly_together, seats
from castor_records.events.failures import Replaced

REQUEST_AGAIN_S = 60.0
"""A machine that was asked for and has not come is asked for again."""


def fill_every_s(machines: int) -> float:
    """Return how long losses during a gathering are collected, to be filled in one plan.

    A plan names all machines and is read by all: where they are many, a second's losses share one.
    Below 250 machines each is filled as it is seen.
    """
    spread_s = machines / 1000
    return spread_s if spread_s > TICK_S else 0.0


class Filling:
    """Fills the places of one term's plans.

    Args:
        spec: the job.
        term: of the root.
    """

    def __init__(self, spec: JobSpec, term: int) -> None:
        self._spec = spec
        self._term = term
        self._requested_s: dict[int, float] = {}

    def fill(
        self,
        plan: Plan,
        known: Mapping[str, AgentReport | None],
        free: Sequence[AgentReport],
        now_s: float,
        at_s: float,
        doubted: Sequence[AgentReport] = (),
        how: Callable[[str], SightKind] = lambda _: SightKind.LEASE,
    ) -> tuple[Plan, list[RootEffect]]:
        """Give every machine without a live agent one, or ask for one.

        Args:
            plan: of the generation.
            known: of each agent in the store its report; None once it was given up.
            free: agents that fill no machine, the preferred ones first.
            now_s: the root's steady clock; -inf: nobody is asked for yet.
            at_s: seconds from the job's start, by the clock on the wall.
            doubted: agents that fill none, and were given up before (rule 3): they take what
                nobody else does, and a machine is asked for as well.
            how: says as what an agent is lost that left the store, or was given up.
        """
        agents, incarnations = list(plan.agents), list(plan.incarnations)
        effects: list[RootEffect] = []
        lost: list[Culprit] = []
        for machine, name in enumerate(plan.agents):
            report = known.get(name)
            if name and report is None:
                agents[machine] = incarnations[machine] = ""
                lost.append(_lost(machine, name, how(name)))
                effects.append(detected(plan.generation, lost[-1], plan.seen))
            elif report is not None:
                incarnations[machine] = report.incarnation
        empty = [machine for machine, name in enumerate(agents) if not name]
        filled_by = {m: known[name] for m, name in enumerate(agents) if name in known}
        domains = {m: report.domain for m, report in filled_by.items() if report is not None}
        before = dict(domains)
        seated = seats(self._spec, free, empty, domains)
        left = [machine for machine in empty if machine not in seated]
        domains |= {machine: report.domain for machine, report in seated.items()}
        unsure = seats(self._spec, doubted, left, domains)
        seated |= unsure
        domains |= {machine: report.domain for machine, report in seated.items()}
        for machine in empty:
            if (report := seated.get(machine)) is not None:
                agents[machine], incarnations[machine] = report.agent, report.incarnation
                effects.append(_replaced(plan, machine, report.agent))
            if machine in seated and machine not in unsure:
                self._requested_s.pop(machine, None)
            else:
                effects += self.request([(machine, f"{plan.generation}-{machine}")], now_s)
        effects += newly_together(self._spec, plan.generation, before, domains)
        new = [gone for gone in lost if gone not in plan.culprits]
        # Who was named for this generation's failure, and is now known to be gone, failed once.
        named = {one.agent for one in plan.culprits}
        filled = replace(
            plan,
            agents=tuple(agents),
            incarnations=tuple(incarnations),
            culprits=(*plan.culprits, *new),
            failures=remembered(
                self._spec, plan.failures, [one for one in new if one.agent not in named], at_s
            ),
            fresh=tuple(sorted({*plan.fresh, *seated})),
        )
        return filled, effects

    def request(self, wanted: Sequence[tuple[int, str]], now_s: float) -> list[RootEffect]:
        """Ask for machines, for each again once nobody has come for `REQUEST_AGAIN_S`."""
        effects: list[RootEffect] = []
        for machine, request in wanted:
            if now_s - self._requested_s.get(machine, -REQUEST_AGAIN_S) >= REQUEST_AGAIN_S:
                self._requested_s[machine] = now_s
                effects.append(RequestMachine(self._term, request))
        return effects


def _lost(machine: int, agent: str, kind: SightKind) -> Culprit:
    return Culprit(machine, -1, agent, kind, how_lost(agent, kind))


def _replaced(plan: Plan, machine: int, agent: str) -> Log:
    return Log(Replaced(generation=plan.generation, machine=machine, agent=agent))

"""Who is held responsible for a failure, from what all agents saw of it.

What is nearest the cause is named, and everybody else who saw something is quoted apart:

1. a lost lease or a restarted agent, and beside it whatever was killed by a signal;
2. an error of a trainer's own, a process that stands still, a rank that all others wait for, a part
   that cannot be had;
3. an exit with code 0 while others trained on, if all others that say anything lost a connection;
4. an agent that others cannot reach, and that says nothing of how its own trainers fare;
5. nobody: a lost connection is seen by everyone but who caused it.

Sights of the first kind need no others beside them. For the rest the root waits until every rank is
accounted for, or for `window_s`: a symptom often comes sooner than what it is a symptom of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import Log
from castor_policy.agents.evidence import (
    AT_ONCE,
    GONE,
    OWN,
    Culprit,
    Sight,
    SightKind,
    sight_of_end,
    strength,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.agents.standstill import Standstill
from castor_records.events.failures import Detected

_WINDOW_S = 1.0

MOST_NAMED = 16
"""So many culprits, and so many other sights, are kept in the plan and told in the event log."""

_MOST_IN_WORDS = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one failure.

    Attributes:
        culprits: who is held responsible, by machine; empty: nobody saw.
        others: what else was seen, a sentence each; symptoms, and things that may be ones.
        certain: later sights would change nothing, or none are to come.
    """

    culprits: tuple[Culprit, ...]
    others: tuple[str, ...]
    certain: bool

    @property
    def reason(self) -> str:
        """The failure in words."""
        if not self.culprits:
            return "; ".join(("what failed is not known", *_first(self.others)))
        return "; ".join(_first([f"machine {one.machine}: {one.cause}" for one in self.culprits]))


def window_s(spec: JobSpec) -> float:
    """Return how long weak evidence waits for better.

    Only failures that nobody saw cost it: most are of a whole machine, and its lease takes longer.
    """
    return min(_WINDOW_S, spec.limits.lease_s / 4)


def judge(
    spec: JobSpec,
    plan: Plan,
    lost: Mapping[int, str],
    members: Mapping[int, AgentReport],
    still: Standstill | None = None,
) -> Verdict:
    """Say who is responsible for the failure of a generation.

    Args:
        spec: the job.
        plan: of the generation that failed; reports of others say nothing of it.
        lost: machines without their agent, with one of `GONE` or `SightKind.AGENT`.
        members: the other machines' reports.
        still: no trainer of the job goes on; its ranks are those that did not come.
    """
    agents = plan.agents
    seen: list[tuple[int, Sight]] = [(m, _sight_of_loss(agents[m], how)) for m, how in lost.items()]
    silent: set[int] = set()
    for machine, report in members.items():
        if report.generation != plan.generation:
            silent.add(machine)
            continue
        seen += [(machine, sight) for sight in seen_by(report)]
        seen += [(machine, sight_of_end(rank, 0, "")) for rank in report.ended]
        if not has_said_all(spec, report):
            silent.add(machine)
    if still is not None:
        said = f"did not come ({still.reason})"
        seen += [
            (r // spec.ranks_per_machine, Sight(r, SightKind.STALL, said)) for r in still.ranks
        ]
    named = _named(seen, doubtful=_may_be_at_fault(plan, members, silent))
    if not named:
        heard = [report for machine, report in members.items() if machine not in silent]
        gone = _lost_to(heard, plan, silent)
        named = [(machine, _does_not_answer(agents[machine])) for machine in gone]
    blamed = set(named)
    culprits = tuple(
        Culprit(machine, sight.rank, agents[machine], sight.kind, _cause(sight), sight.words)
        for machine, sight in sorted(named, key=lambda pair: (pair[0], pair[1].rank))
    )
    others = tuple(
        f"machine {machine}: {sight.text()}"
        for machine, sight in seen
        if (machine, sight) not in blamed
    )
    if still is not None and not still.ranks:
        others = (*others, still.reason)
    best = min((strength(sight.kind) for _, sight in seen), default=OWN + 1)
    return Verdict(culprits, others, certain=best <= AT_ONCE or still is not None or not silent)


def detected(generation: int, culprit: Culprit | None, others: Sequence[str]) -> Log:
    """Return the event that tells of a failure.

    Args:
        generation: that the failure begins.
        culprit: who is held responsible; None: nobody saw.
        others: what else was seen.
    """
    named = culprit or Culprit(-1, -1, "", SightKind.UNKNOWN, "what failed is not known")
    gone = named.kind in GONE
    return Log(
        Detected(
            generation=generation,
            failure="hardware" if gone else "software",
            how=named.kind,
            machine=named.machine if named.machine >= 0 else None,
            rank=named.rank if named.rank >= 0 else None,
            agent=named.agent,
            cause=named.cause,
            seen=tuple(others),
        )
    )


def how_lost(agent: str, how: str) -> str:
    """Return the cause of the loss of a machine, in words; `how`: one of `GONE`."""
    match how:
        case SightKind.LEASE:
            return f"the lease of agent {agent} expired"
        case SightKind.UNREACHED:
            return f"its neighbours lost agent {agent}, which takes no new connection"
        case _:
            return f"agent {agent} renews its lease and answers nothing"


def _named(seen: Sequence[tuple[int, Sight]], *, doubtful: bool) -> list[tuple[int, Sight]]:
    """Return those of the sights that name a culprit; `doubtful`: it may be who told nothing."""
    best = min((strength(sight.kind) for _, sight in seen), default=OWN + 1)
    if best <= OWN:
        # A machine that is gone and a process that was killed do not make each other happen.
        least = AT_ONCE if best <= AT_ONCE else best
        return [pair for pair in seen if strength(pair[1].kind) <= least]
    left = [pair for pair in seen if pair[1].kind == SightKind.LEFT]
    cut_off = [pair for pair in seen if pair[1].kind == SightKind.CONNECTION]
    # Where most have left, training was over for them, and whoever failed then failed alone.
    if left and not doubtful and len(left) <= len(cut_off) == len(seen) - len(left):
        return left
    return []


def _may_be_at_fault(
    plan: Plan, members: Mapping[int, AgentReport], silent: Collection[int]
) -> bool:
    """Whether one of the silent machines may be the one that broke the connections.

    One that all others reach, and that is in the generation, is not: its trainers live, or it would
    say so. They wait for each other, as those do that go on in place.
    """
    is_behind = any(members[one].generation != plan.generation for one in silent)
    return is_behind or bool(_lost_to(members.values(), plan, silent))


def _lost_to(witnesses: Iterable[AgentReport], plan: Plan, machines: Collection[int]) -> list[int]:
    """Return those of some machines that one of the witnesses cannot reach."""
    said = {name for report in witnesses for name in report.unreached}
    return [machine for machine in sorted(machines) if plan.incarnations[machine] in said]


def _does_not_answer(agent: str) -> Sight:
    return Sight(-1, SightKind.AGENT, f"agent {agent} does not answer")


def _cause(sight: Sight) -> str:
    left = sight.kind == SightKind.LEFT
    return f"{sight.text()} while others still trained" if left else sight.text()


def _first(told: Sequence[str]) -> list[str]:
    more = len(told) - _MOST_IN_WORDS
    return [*told[:_MOST_IN_WORDS], *([f"and {more} more"] if more > 0 else [])]


def has_said_all(spec: JobSpec, report: AgentReport) -> bool:
    """Whether a machine of the failed generation has told what became of each of its ranks."""
    told = {sight.rank for sight in seen_by(report)} | set(report.ended)
    is_over = report.state in (State.FAILED, State.FINISHED)
    return is_over and (-1 in told or len(told) >= spec.ranks_per_machine)


def seen_by(report: AgentReport) -> Sequence[Sight]:
    """Return what a machine saw fail."""
    if report.state == State.FAILED and not report.seen:
        return [Sight(-1, report.kind, report.reason)]
    return report.seen


def _sight_of_loss(agent: str, how: str) -> Sight:
    if how in GONE:
        return Sight(-1, how, how_lost(agent, how))
    return Sight(-1, SightKind.AGENT, f"agent {agent} was restarted")

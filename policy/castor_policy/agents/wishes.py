"""What the root does about a user's wishes: to stop, to stop with a checkpoint, to drain a machine.

1. A wish stands in the store until what it asks for is done, and goes with the write that does it,
   or once that is seen to be done. A root that comes later finds it there.
2. `stop` is done at once, whatever the job is doing; nothing is kept in memory.
3. The others begin by holding: the root asks a generation's trainers to hold, and they agree among
   themselves, with a checkpoint, on the iteration after which none of them goes on. So it is
   complete on all replicas, nothing has been trained beyond it, and nothing is trained twice.
4. `checkpoint`: the iteration that is held is persisted, and the job stops once every machine has
   seen it count in a tier: one that is slow, or away, holds up nobody while another may yet take
   it. What no tier takes is tried again; after `MOST_IN_VAIN` times at the next checkpoint, which
   the job trains on to.
5. `drain`: the next generation begins with the machine's place given to a standby, which fetches
   its parts from the other replicas. The drained agent leaves once all replicas are there again;
   until then it takes the place of a standby that fails, if nobody else does. Several are drained
   at once where every shard keeps a replica. Without a standby the drain waits, training goes on,
   and a machine is asked for.
6. Who holds for a wish that does not stand any more goes on in the next generation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.attempts import furthest
from castor_policy.agents.effects import AskHold, AskPersist, GrantWishes, Log
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.wish import Wish, WishKind
from castor_policy.interleaving import NONE
from castor_policy.placement import Placement
from castor_records.events.failures import Drained

ASK_AGAIN_S = 5.0
"""What was asked for and has not come about is asked for again: it may not have been heard."""

MOST_IN_VAIN = 3
"""After so many tries to persist what is held the job goes on to its next checkpoint first."""

STOPPED = "stopped by its user"
STOPPED_AT = "stopped by its user at a checkpoint"
GOES_ON = "training goes on: what it held for was taken back, or cannot be done now"

Ask: TypeAlias = AskHold | AskPersist | GrantWishes


class Wishes:
    """The wishes that stand, as the root of one term knows them.

    Args:
        spec: the job.
        term: of the root.
        standing: by their keys.
    """

    def __init__(self, spec: JobSpec, term: int, standing: Mapping[str, Wish]) -> None:
        self._spec = spec
        self._term = term
        self._standing = dict(standing)
        self._asked_s: dict[str, float] = {}

    def changed(self, key: str, wish: Wish | None) -> None:
        """Take in what stands under a key now."""
        if wish is None:
            self._standing.pop(key, None)
        else:
            self._standing[key] = wish

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self._standing)

    def is_leaving(self, report: AgentReport) -> bool:
        """Whether this life of an agent is to be drained."""
        life = report.agent, report.incarnation
        return any(wish.life == life for _, wish in self._of(WishKind.DRAIN))

    def ends_at_once(self) -> bool:
        """Whether the job is to stop now."""
        return bool(self._of(WishKind.STOP))

    def keys_of_stop(self) -> tuple[str, ...]:
        """Return the keys of what asks for the job's end: done by the plan that stops it."""
        kinds = (WishKind.STOP, WishKind.CHECKPOINT)
        return tuple(key for kind in kinds for key, _ in self._of(kind))

    def stops_at(self, current: Sequence[AgentReport]) -> int:
        """Return the persisted iteration that the job holds at, to stop there; 0: it does not."""
        held = held_by_all(self._spec, current)
        wanted = bool(self._of(WishKind.CHECKPOINT))
        return held if wanted and all(one.persisted == held for one in current) else 0

    def leaving(self, plan: Plan, placement: Placement, takers: int) -> tuple[int, ...]:
        """Return the machines whose places are given away now, and so are drained at once.

        Args:
            plan: in phase LOAD.
            placement: of the job: every shard keeps a replica.
            takers: agents that are there to take a place.
        """
        found: list[int] = []
        for machine in self._to_leave(plan):
            if len(found) < takers and placement.survives([*found, machine]):
                found.append(machine)
        return tuple(found)

    def waiting(self, plan: Plan, takers: int) -> tuple[int, ...]:
        """Return the machines that are drained once somebody is there to take their places."""
        return self._to_leave(plan)[takers:]

    def ask(
        self,
        plan: Plan,
        revision: int,
        current: Sequence[AgentReport],
        leaving: Collection[int],
        now_s: float,
    ) -> list[Ask]:
        """Return what is asked for next, for as long as the generation goes on; maybe nothing.

        Args:
            plan: in phase LOAD.
            revision: of its key in the store.
            current: reports of its machines.
            leaving: which of them have somebody to take their places.
            now_s: the root's steady clock.
        """
        held = held_by_all(self._spec, current)
        if held:
            return self._once(AskPersist(self._term, held), now_s)
        is_whole = len(current) == self._spec.machines and all(
            report.state == State.RUNNING and report.redundant for report in current
        )
        if not is_whole:
            return []
        done = [
            key for key, wish in self._of(WishKind.DRAIN) if plan.machine_of(*wish.life) is None
        ]
        if done:
            return self._once(GrantWishes(self._term, tuple(done), revision), now_s)
        if leaving or self._can_end():
            return self._once(AskHold(self._term, plan.generation), now_s)
        return []

    def keeps_holding(self, current: Sequence[AgentReport]) -> bool:
        """Whether who holds waits for its checkpoint to be persisted, and that has not failed."""
        return self._can_end() and all(report.in_vain < MOST_IN_VAIN for report in current)

    def _can_end(self) -> bool:
        return bool(self._of(WishKind.CHECKPOINT)) and not refused_stop(self._spec)

    def _once(self, ask: Ask, now_s: float) -> list[Ask]:
        key = repr(ask)
        if now_s - self._asked_s.get(key, float("-inf")) < ASK_AGAIN_S:
            return []
        self._asked_s[key] = now_s
        return [ask]

    def _to_leave(self, plan: Plan) -> tuple[int, ...]:
        if refused_drain(self._spec):
            return ()
        places = (plan.machine_of(*wish.life) for _, wish in self._of(WishKind.DRAIN))
        return tuple(machine for machine in places if machine is not None)

    def _of(self, kind: WishKind) -> list[tuple[str, Wish]]:
        return [(key, wish) for key, wish in sorted(self._standing.items()) if wish.kind == kind]


def held_by_all(spec: JobSpec, current: Sequence[AgentReport]) -> int:
    """Return the iteration at which all machines' trainers hold; 0 while one does not."""
    held = {report.held for report in current}
    return held.pop() if len(current) == spec.machines and len(held) == 1 else 0


def refused_stop(spec: JobSpec) -> str:
    """Return why a job cannot stop with a checkpoint; "" if it can."""
    if not spec.persistence.tiers:
        return (
            f"job {spec.job} has no persistent tier to put a checkpoint into: stop it without "
            "--checkpoint, or begin jobs with --persist"
        )
    return _refused_hold(spec)


def refused_drain(spec: JobSpec) -> str:
    """Return why no machine of a job can be drained; "" if one can."""
    if any(len(row) < 2 for row in spec.replicas):
        return (
            f"job {spec.job} keeps one replica of each part: what a drained machine holds would be "
            "lost; stop the job with a checkpoint instead"
        )
    return _refused_hold(spec)


def _refused_hold(spec: JobSpec) -> str:
    if spec.traffic.scheme == NONE:
        return f"job {spec.job} makes no checkpoints in memory (scheme none) to hold at"
    return ""


def stopped(plan: Plan, current: Sequence[AgentReport], persisted: int = 0) -> Plan:
    """Return the plan that ends the job because its user says so.

    Args:
        plan: before.
        current: reports of the machines that train; none while none does.
        persisted: the iteration that they hold at, if it lies in the persistent tier.
    """
    reached = persisted or max(plan.reached, plan.iteration, furthest(current))
    reason = STOPPED_AT if persisted else STOPPED
    return replace(plan, phase=Phase.STOPPED, reason=reason, reached=reached, waits_for="")


def handed_over(plan: Plan, held: int, leaving: Sequence[int]) -> Plan:
    """Return the plan of the next generation, which goes on from where this one holds.

    Args:
        plan: in phase LOAD.
        held: iteration.
        leaving: machines whose places are empty in it.
    """
    names = ", ".join(plan.agents[machine] for machine in leaving)
    return Plan(
        generation=plan.generation + 1,
        term=plan.term,
        phase=Phase.GATHER,
        agents=_emptied(plan.agents, leaving),
        incarnations=_emptied(plan.incarnations, leaving),
        reason=f"{names}: drained" if leaving else GOES_ON,
        script=plan.script,
        reached=max(plan.reached, held),
        trained=True,
        failures=plan.failures,
        aside=plan.aside,
        loaded=plan.agents,
        asked_for=True,
    )


def given_away(plan: Plan, held: int, leaving: Sequence[int]) -> list[Log]:
    """Return what the log says of the places that `handed_over` empties."""
    following = plan.generation + 1
    return [
        Log(
            Drained(
                generation=following, machine=machine, agent=plan.agents[machine], iteration=held
            )
        )
        for machine in leaving
    ]


def _emptied(names: Sequence[str], places: Collection[int]) -> tuple[str, ...]:
    return tuple("" if place in places else name for place, name in enumerate(names))

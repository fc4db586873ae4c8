"""Bugs planted in the policy, one rule each: exploring must find every one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from castor_policy import checkpoint_memory, recovery
from castor_policy.agents import (
    events,
    gathering,
    neighbours,
    own_report,
    patience,
    root,
    root_state,
    store_writes,
    worker,
    worker_contact,
)
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import (
    DiscardOtherIterations,
    Forget,
    ParkTrainers,
    RootWrite,
    StopTrainers,
)
from castor_policy.agents.events import SessionRenewed
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.checkpoint_memory import BufferHeader, BufferState
from castor_policy.store import Txn
from castor_sim.explore.variant import Patch, Variant

# ---- what is done in place of what ---------------------------------------------------------------


def _unfenced(write: Callable[[str, str, RootWrite], Txn]) -> Any:
    """Write, whoever is root now."""
    return lambda job, agent, wanted: Txn((), write(job, agent, wanted).operations)


def _fenced_by_term_only(write: Callable[[str, str, RootWrite], Txn]) -> Any:
    def written(job: str, agent: str, wanted: RootWrite) -> Txn:
        txn = write(job, agent, wanted)
        return Txn(txn.compares[:1], txn.operations)

    return written


def _offered_while_written(_offered: object) -> Any:
    def offered(headers: Sequence[BufferHeader]) -> frozenset[int]:
        there = (BufferState.WRITING, BufferState.COMPLETE)
        return frozenset(header.iteration for header in headers if header.state in there)

    return offered


def _furthest(_held: object) -> Any:
    def held(_spec: JobSpec, current: Sequence[AgentReport]) -> int:
        return max((report.complete for report in current), default=0)

    return held


def _without(*kinds: type) -> Callable[[Any], Any]:
    """Leave some effects out of what a method returns."""

    def make(method: Callable[..., list[Any]]) -> Any:
        def left(*arguments: Any, **more: Any) -> list[Any]:
            return [done for done in method(*arguments, **more) if not isinstance(done, kinds)]

        return left

    return make


def _in_place_always(decide: Callable[..., Plan | None]) -> Any:
    """Have trainers stay, whatever is loaded."""

    def always(*arguments: Any) -> Plan | None:
        chosen = decide(*arguments)
        return None if chosen is None else replace(chosen, in_place=True)

    return always


def _returns(*, value: object) -> Callable[[Any], Any]:
    """Return this, whatever is asked."""
    return lambda _method: lambda *_arguments, **_more: value


def _returns_value(value: object) -> Callable[[Any], Any]:
    """Stand for a constant."""
    return lambda _constant: value


def _united_over_ranks(_method: object) -> Any:
    def whole(spec: JobSpec, report: AgentReport) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for shard in range(spec.machines):
            held = [set(report.holdings.get(str(r), ())) for r in spec.ranks_of(shard)]
            if any(held):
                found[shard] = set().union(*held)
        return found

    return whole


def _any_gathered(gather: Callable[..., Any]) -> Any:
    """Take a report of any generation for one of the plan's."""

    def gathered(self: root.Root, plan: Plan, now_s: float) -> Any:
        known = self.reports
        self.reports = {
            name: replace(report, generation=plan.generation) for name, report in known.items()
        }
        try:
            return gather(self, plan, now_s)
        finally:
            self.reports = known

    return gathered


def _counted_from_receipt(handle: Callable[..., Any]) -> Any:
    def handled(self: worker.Worker, event: events.WorkerEvent, now_s: float) -> Any:
        told = SessionRenewed(now_s) if isinstance(event, SessionRenewed) else event
        return handle(self, told, now_s)

    return handled


def _persistent_united(_seen: object) -> Any:
    def united(reports: Sequence[AgentReport]) -> set[int] | None:
        if any(report.persistent is None for report in reports):
            return None
        return {i for report in reports for i in report.persistent or ()}

    return united


def _always_a_first_attempt(following: Callable[..., Any]) -> Any:
    def begun(self: root.Root, plan: Plan, *others: Any) -> Any:
        return following(self, replace(plan, attempts=-1), *others)

    return begun


def _newest_of_all(_method: object) -> Any:
    return lambda copies: len(copies) - 1


def _first_buffer(_method: object) -> Any:
    """Write over the newest complete iteration before the next one is whole everywhere."""
    return lambda _headers, _agreed, _iteration, **_beside: 0


def _only_buffer_at_once(chosen: Callable[..., int]) -> Any:
    """Write over an only buffer without an agreement."""

    def at_once(headers: Sequence[BufferHeader], *others: Any, **beside: bool) -> int:
        return 0 if len(headers) == 1 else chosen(headers, *others, **beside)

    return at_once


def _as_if_alone(chosen: Callable[..., int]) -> Any:
    """Choose a buffer as if nothing were fetched into the replica."""
    return lambda headers, agreed, iteration, **_beside: chosen(headers, agreed, iteration)


def _past_counts(gathered: Callable[..., Any]) -> Any:
    def told(self: worker.Worker, inspected: events.Inspected) -> Any:
        plan, self.plan = self.plan, None
        try:
            return gathered(self, inspected)
        finally:
            self.plan = plan

    return told


def _as_if_decided(superseded: Callable[..., Any]) -> Any:
    def told(self: worker.Worker, plan: Plan, **more: bool) -> Any:
        return superseded(self, replace(plan, phase=Phase.LOAD), **more)

    return told


def _only_absence(known: Callable[..., None]) -> Any:
    def told(self: own_report.OwnReport, report: object, revision: int, **more: bool) -> None:
        if report is None:
            known(self, None, revision, **more)

    return told


VARIANTS = (
    Variant(
        "root-without-fencing",
        "plans are written without the fence of term and revision",
        (Patch(store_writes, "root_write", _unfenced),),
    ),
    Variant(
        "offer-before-complete",
        "what is still being written is offered",
        (Patch(checkpoint_memory, "offered", _offered_while_written),),
    ),
    Variant(
        "buffer-reused-early",
        "the newest whole iteration is written over",
        (Patch(checkpoint_memory, "buffer_to_write", _first_buffer),),
    ),
    Variant(
        "own-overwritten-early",
        "the only buffer of an own replica is written over before the remote ones are agreed on",
        (
            Patch(checkpoint_memory, "fills_own_last", _returns(value=False)),
            Patch(checkpoint_memory, "buffer_to_write", _only_buffer_at_once),
        ),
    ),
    Variant(
        "written-into-a-fetch",
        "a checkpoint taken while a replica is fetched takes the buffer that the fetch fills",
        (Patch(checkpoint_memory, "buffer_to_write", _as_if_alone),),
    ),
    Variant(
        "plan-without-its-revision",
        "a plan is fenced by the term alone, not by the revision it was decided on",
        (Patch(store_writes, "root_write", _fenced_by_term_only),),
    ),
    Variant(
        "nothing-dropped",
        "replicas of other iterations than the one that is loaded are kept",
        (Patch(worker.Worker, "_load", _without(DiscardOtherIterations)),),
    ),
    Variant(
        "ranks-united",
        "a shard counts as held where any of its ranks is, not all of them",
        (Patch(gathering, "_shards_whole_in", _united_over_ranks),),
    ),
    Variant(
        "stale-gathered",
        "a GATHERED report of an earlier generation counts in this one",
        (Patch(root.Root, "_gather", _any_gathered),),
    ),
    Variant(
        "lease-from-receipt",
        "the lease is counted from the answer to its renewal, not from the request",
        (Patch(worker.Worker, "handle", _counted_from_receipt),),
    ),
    Variant(
        "persistent-united",
        "a persistent iteration counts if any machine sees it, not all of them",
        (Patch(gathering, "in_all_storage", _persistent_united),),
    ),
    Variant(
        "past-memory-counts",
        "memory of a machine that the last generation was loaded without counts",
        (Patch(worker.Worker, "_gathered", _past_counts),),
    ),
    Variant(
        "never-forgets",
        "an agent whose place was given away keeps its memory",
        (Patch(worker.Worker, "_superseded", _without(Forget)),),
    ),
    Variant(
        "attempts-anew",
        "every attempt counts as the first one",
        (Patch(root.Root, "_next_generation", _always_a_first_attempt),),
    ),
    # Not of issue 9's list.
    Variant(
        "newest-of-all",
        "the newest iteration is loaded though an older one has more copies",
        (Patch(recovery, "newest_safe", _newest_of_all),),
    ),
    Variant(
        "own-key-unread",
        "an agent does not look which report stands in its own key",
        (Patch(own_report.OwnReport, "known", _only_absence),),
    ),
    Variant(
        "name-unproven",
        "a second agent of a name takes it without proof that the first one is dead",
        (Patch(own_report.NameClaim, "decide", _returns(value=own_report.Verdict.TAKE)),),
    ),
    Variant(
        "any-run",
        "memory of an earlier run of the job's name counts as this one's",
        (Patch(checkpoint_memory, "is_of_run", _returns(value=True)),),
    ),
    Variant(
        "awaited-for-ever",
        "a machine that never says what it holds, or never reads storage, is waited for for ever",
        (Patch(patience.Patience, "wait", _returns(value=[])),),
    ),
    Variant(
        "silent-again",
        "a machine that storage did not answer takes its place again, as if nothing had been",
        (Patch(patience.Patience, "is_doubted", _returns(value=False)),),
    ),
    Variant(
        "superseded-trains-on",
        "a machine whose place was given away does not stop its trainers",
        (Patch(worker.Worker, "_superseded", _without(StopTrainers)),),
    ),
    Variant(
        "gathered-while-training",
        "memory is inspected while trainers still run, in the groups of their old generation",
        (Patch(worker.Worker, "_gather", _without(StopTrainers, ParkTrainers)),),
    ),
    Variant(
        "in-place-from-scratch",
        "trainers stay, and others are built without them, where no memory holds what they load",
        (Patch(root, "decided", _in_place_always),),
    ),
    Variant(
        "failed-write-pending",
        "a root whose write was not taken waits for it for ever",
        (Patch(root_state.RootState, "write_failed", _returns(value=None)),),
    ),
    Variant(
        "older-plan-obeyed",
        "a plan that is older than the one known turns a machine back",
        (Patch(Plan, "is_before", _returns(value=False)),),
    ),
    Variant(
        "forgets-early",
        "a machine gives its memory back before it is decided what is loaded without it",
        (Patch(worker.Worker, "_superseded", _as_if_decided),),
    ),
    Variant(
        "judged-at-once",
        "the first that is seen of a failure is judged, though better evidence is on its way",
        (Patch(root, "window_s", _returns(value=0.0)),),
    ),
    Variant(
        "isolated-goes-on",
        "a machine that is cut off from the store and every peer does not stop its trainers",
        (Patch(worker_contact.WorkerContact, "_watch_isolation", _returns(value=[])),),
    ),
    Variant(
        "one-witness",
        "a machine is given up as soon as one of those around it cannot reach it",
        (Patch(neighbours, "WITNESSES", _returns_value(1)),),
    ),
    Variant(
        "drained-unheld",
        "a machine is drained as soon as that is asked for, and nobody holds",
        (Patch(root, "held_by_all", _furthest),),
        asks=True,
    ),
)

BROKEN: dict[str, Variant] = {variant.name: variant for variant in VARIANTS}
"""The broken variants by name."""

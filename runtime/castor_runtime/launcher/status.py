"""The state of a job as one document, from the store and, on its own machine, from its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.seating import copies_together
from castor_policy.agents.wish_progress import progress
from castor_records.event_log import merge
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.storing import StoreTrouble
from castor_records.recoveries import last_iteration, recoveries
from castor_runtime.arena.errors import ArenaError
from castor_runtime.arena.leftovers import NEXT_STEPS
from castor_runtime.arena.replica import Replica
from castor_runtime.launcher.accounts import Accounts
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.machine_requests import waiting
from castor_runtime.launcher.odd_ranks import not_finite, slow_now
from castor_runtime.launcher.run_folder import AgentRecord, RunFolder
from castor_runtime.stores.versions import fault_of


def status_document(
    view: JobView,
    folder: RunFolder | None,
    store: Mapping[str, Any] | None = None,
    accounts: Accounts | None = None,
) -> dict[str, Any]:
    """Return what `castor status --json` prints.

    Args:
        view: the job as the store has it.
        store: `EtcdStore.state` of that store; None: not known.
        folder: its run folder, if it runs on this machine: then memory and the newest complete
            iterations are read from the checkpoint memory itself, and recoveries have their phases.
        accounts: what its agents tell, if there is no folder: recoveries have their phases then,
            and clocks are known. None: only what the store says is known.

    Raises:
        ValueError: the store has no such job.
    """
    spec, plan = view.spec, view.plan
    if spec is None:
        raise ValueError(f"the store has no job {view.job!r}")
    records = {} if folder is None else {record.name: record for record in folder.records()}
    agents = plan.agents if plan is not None else ("",) * spec.machines
    shards = _shards(spec, [view.reports.get(n) for n in agents], [records.get(n) for n in agents])
    machines = [
        _machine(machine, name, view.reports.get(name), records.get(name))
        for machine, name in enumerate(agents)
    ]
    for machine, shard in zip(machines, shards, strict=True):
        # Reports are written about once a second; the memory is of this moment.
        machine["iteration"] = max(machine["iteration"], shard["complete"])
    standbys = sorted(set(view.reports) - set(agents))
    over = plan is not None and plan.is_over
    entries = _entries(folder, accounts)
    iteration = max((machine["iteration"] for machine in machines), default=0)
    if plan is not None and plan.is_over:
        # The agents have gone, and their reports and memory with them.
        iteration = max(iteration, plan.reached, last_iteration(entries or ()))
    return {
        "job": spec.job,
        "run": spec.run,
        "phase": "starting" if plan is None else str(plan.phase),
        "generation": 0 if plan is None else plan.generation,
        "reason": "" if plan is None else plan.reason,
        "root": view.root,
        "term": view.term,
        "iteration": iteration,
        "complete_iteration": min((shard["complete"] for shard in shards), default=0),
        "degraded": not over and not all(machine["redundant"] for machine in machines),
        "kept_memory": NEXT_STEPS if plan is not None and plan.phase == Phase.FAILED else None,
        "machines": machines,
        "attempts": 0 if plan is None else plan.attempts,
        "last_failure": _last_failure(plan),
        "failures": _failures(plan),
        "slow": _odd(slow_now, entries, plan),
        "not_finite": _odd(not_finite, entries, plan),
        "standbys": [
            _machine(None, n, view.reports[n], records.get(n))
            | {"set_aside": _aside(plan, view.reports[n])}
            for n in standbys
        ],
        "waits_for": "" if plan is None else plan.waits_for,
        "machines_asked_for": waiting(view),
        "wishes": [
            {
                "kind": wish.kind,
                "agent": wish.agent,
                "progress": progress(spec, plan, view.reports, wish),
            }
            for _, wish in sorted(view.wishes.items())
            if not over
        ],
        "copies_together": _copies_together(spec, machines),
        "refused": [
            {"agent": agent, "host": one.host, "reason": one.reason}
            for agent, one in sorted(view.refused.items())
        ],
        "shards": shards,
        "persist_failures": {
            name: report.persist_failure
            for name, report in sorted(view.reports.items())
            if report.persist_failure
        },
        "store": _store(view, store or {}, entries),
        "persistent": sorted(
            {i for report in view.reports.values() for i in report.persistent or ()}
        ),
        "recoveries": _recoveries(view, entries),
        "unreached": {} if accounts is None else dict(accounts.unreached),
        "clocks": _clocks(accounts),
    }


def _entries(folder: RunFolder | None, accounts: Accounts | None) -> list[Entry[Event]] | None:
    """Return what happened, by whoever is at hand to tell; None: nobody."""
    if folder is not None:
        return merge(folder.event_logs())
    return None if accounts is None or not accounts.by_agent else accounts.entries()


def _clocks(accounts: Accounts | None) -> dict[str, dict[str, Any]]:
    """Return how far each agent's clock is from the others', and how sure that is."""
    found = {} if accounts is None else accounts.clocks()
    return {name: offset.to_json() for name, offset in sorted(found.items())}


def _copies_together(spec: JobSpec, machines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the shards with two copies in one failure domain, and which one."""
    domains = {machine["machine"]: machine["domain"] for machine in machines}
    return {str(shard): domain for shard, domain in copies_together(spec, domains).items()}


def _store(
    view: JobView, state: Mapping[str, Any], entries: Sequence[Entry[Event]] | None
) -> dict[str, Any]:
    """Return which store it is, and what is wrong with it: now, or as the agents have met it."""
    troubles = [f"{key} is set aside: {why}" for key, why in sorted(view.set_aside.items())]
    version = str(state.get("version", ""))
    if fault := fault_of(version):
        troubles.append(fault)
    troubles += [f"the store has an alarm: {alarm}" for alarm in state.get("alarms", ())]
    met: dict[tuple[str, str], str] = {}
    for entry in of_kind(entries or (), StoreTrouble):
        met[entry.event.about, entry.event.agent] = entry.event.reason
    # What stands in the store is told above; what it went through, by whom it was met.
    troubles += [
        f"{agent}: {reason}"
        for (about, agent), reason in sorted(met.items())
        if reason and not about.startswith("/")
    ]
    return {"version": version, "troubles": troubles}


def _machine(
    machine: int | None, name: str, report: AgentReport | None, record: AgentRecord | None
) -> dict[str, Any]:
    state = "lost" if report is None else str(report.state)
    if record is not None and not record.lives:
        state = "dead"  # its lease may not have expired yet
    return {
        "machine": machine,
        "agent": name,
        "lease": "held" if report is not None else "none",
        "state": state,
        "iteration": report.iteration if report is not None else 0,
        "redundant": report is not None and report.redundant and state == State.RUNNING,
        "address": report.address if report is not None else "",
        "domain": report.domain if report is not None else "",
        "memory_bytes": _memory_bytes(report, record),
    }


def _memory_bytes(report: AgentReport | None, record: AgentRecord | None) -> int | None:
    """Return the checkpoint memory of an agent as it is, or as it was told; None: not known."""
    if record is not None:
        return record.memory_bytes()
    return report.memory_bytes if report is not None else None


def _last_failure(plan: Plan | None) -> dict[str, Any] | None:
    """Return who is held responsible for the last failure, and what else was seen of it."""
    if plan is None or not (plan.culprits or plan.seen):
        return None
    return {"culprits": [asdict(one) for one in plan.culprits], "seen": list(plan.seen)}


def _failures(plan: Plan | None) -> dict[str, dict[str, Any]]:
    """Return for each agent that failed of late how often, and the last cause."""
    found: dict[str, dict[str, Any]] = {}
    for one in plan.failures if plan is not None else ():
        times = found.get(one.agent, {"times": 0})["times"] + 1
        found[one.agent] = {"times": times, "last": one.cause}
    return found


def _odd(
    find: Callable[[Iterable[Entry[Event]], int], Sequence[Event]],
    entries: Sequence[Entry[Event]] | None,
    plan: Plan | None,
) -> list[dict[str, Any]]:
    """Return what the newest events of some kind say of ranks in the plan's generation."""
    if plan is None or plan.is_over:
        return []
    return [dict(event.fields()) for event in find(entries or (), plan.generation)]


def _aside(plan: Plan | None, report: AgentReport) -> str:
    """Return why this life of an agent is set aside; "" if it is not."""
    entries = plan.aside if plan is not None else ()
    named = (e for e in entries if (e.agent, e.incarnation) == (report.agent, report.incarnation))
    return next((entry.reason for entry in named), "")


def _shards(
    spec: JobSpec, reports: list[AgentReport | None], records: list[AgentRecord | None]
) -> list[dict[str, Any]]:
    """Return, for each shard, the newest complete iteration that each of its holders has."""
    shards = []
    for shard, row in enumerate(spec.replicas):
        ranks = spec.ranks_of(shard)
        holders = {h: _newest_whole(ranks, reports[h], records[h]) for h in row}
        shards.append(
            {
                "shard": shard,
                "complete": max(holders.values()),
                "holders": {str(holder): newest for holder, newest in holders.items()},
            }
        )
    return shards


def _newest_whole(
    ranks: Iterable[int], report: AgentReport | None, record: AgentRecord | None
) -> int:
    if report is None:
        return 0
    common: set[int] | None = None
    seen = False
    for rank in ranks:
        held = set(report.holdings.get(str(rank), ()))
        if record is not None and rank in record.segments:
            seen = True
            try:
                with Replica.open(record.segments[rank]) as replica:
                    held = set(replica.offered())
            except (ArenaError, OSError):
                held = set()
        common = held if common is None else common & held
    newest = max(common or (), default=0)
    # `holdings` are of the last gathering. What is complete has arrived here, too.
    return newest if seen else max(newest, report.complete)


def _recoveries(view: JobView, entries: Sequence[Entry[Event]] | None) -> list[dict[str, Any]]:
    """Return the recoveries so far; from the store alone only how many there were is known."""
    if entries is not None:
        return [one.to_json() for one in recoveries(entries)]
    last = 1 if view.plan is None else view.plan.generation
    return [{"generation": generation} for generation in range(2, last + 1)]

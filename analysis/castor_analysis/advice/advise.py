"""How to run a job: replicas, placement, storage interval and standbys, with the reasons.

Closed forms (`castor_analysis.advice.model`) propose for each number of replicas a placement and
a storage interval; the jump engine then runs all of them against the same failures, and the
smallest number of replicas that fits the memory and is not noticeably worse than the best wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from castor_analysis.advice.case import Case, Request, make_case
from castor_analysis.advice.found import Advice, Alternative, Candidate
from castor_analysis.advice.model import (
    Standbys,
    erlang_loss,
    group_losses_per_s,
    joint_losses_per_s,
    memory_need_bytes,
    racks_survived,
    standbys_for,
    storage_interval,
)
from castor_analysis.summary import Summary, summarise_runs
from castor_configs.cluster import load_cluster
from castor_configs.model import load_model
from castor_policy.frequency_fit import least_wasteful_frequency
from castor_policy.frequency_two_tier import TwoTier
from castor_policy.placement import place
from castor_sim.experiment import Experiment
from castor_sim.job import NS_PER_S
from castor_sim.run import engine_for, replications
from castor_sim.strategies import Gemini
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.tally import Tally

MOST_REPLICAS = 4
"""More copies than this are not looked at."""

WORTHWHILE = 5e-4
"""A gain of the effective training time ratio for which one more replica is worth its memory."""

STORAGE_ONLY = "daly"
"""What is left where memory does not hold even one replica."""

Table = Mapping[str, object]


def advise(request: Request, jobs: int = 1) -> Advice:
    """Say how to run a job.

    Args:
        request: what is asked.
        jobs: threads to simulate with.

    Raises:
        InputError: the cluster, model, trace or a setting is missing or wrong.
    """
    cluster = load_cluster(request.cluster)
    load_model(request.model)  # for an error that speaks of the model, not of an experiment
    case = make_case(request, cluster)
    load = case.failing.lost_per_s * (case.detection_s + case.restore_s)
    closed_form = standbys_for(load, case.setup.job.machines)
    spare = closed_form.by_cost
    candidates, alternatives = _compare(case, spare, jobs)
    chosen = next(one for one in alternatives if one.chosen)
    by_standbys = _try_standbys(case, chosen, closed_form, jobs)
    if chosen.candidate is not None:
        spare = _cheapest(case.setup.job.machines, by_standbys)
        if spare != closed_form.by_cost:
            # More or fewer standbys change how long redundancy is away, and so the rest.
            candidates, alternatives = _compare(case, spare, jobs)
            chosen = next(one for one in alternatives if one.chosen)
    others = _other_placements(case, chosen, jobs)
    fewer = [one for one in by_standbys if one.standbys < spare]
    more = [one for one in by_standbys if one.standbys > spare]
    others += [*fewer[:1], *fewer[1:][-1:], *more[:1]]
    return Advice(
        case=case,
        candidate=chosen.candidate,
        candidates=candidates,
        standbys=spare,
        closed_form=closed_form,
        persist_every_s=chosen.persist_every_s,
        ratio=chosen.summary.ratio,
        alternatives=(*alternatives, *others),
        experiment=_recommended(case, chosen.candidate, spare),
    )


def _compare(case: Case, spare: int, jobs: int) -> tuple[tuple[Candidate, ...], list[Alternative]]:
    """Run every number of replicas, and what there was before; mark the one to take."""
    machines = case.setup.job.machines
    candidates = tuple(
        _best_placement(case, replicas, spare)
        for replicas in range(1, min(MOST_REPLICAS, machines) + 1)
    )
    tables: dict[str, Table] = {f"replicas-{one.replicas}": one.table for one in candidates}
    paper = _candidate(case, min(2, machines), "group", spare)
    tables["gemini"] = {"kind": "gemini", "replicas": paper.replicas, "placement": "group"}
    tables[STORAGE_ONLY] = {"kind": STORAGE_ONLY}
    runs = _simulate(case, tables, spare, jobs)
    ratios = {one.replicas: runs[f"replicas-{one.replicas}"].ratio.mean for one in candidates}
    chosen = choose(candidates, ratios)
    found = [
        Alternative(
            name=f"{one.replicas} replica{'' if one.replicas == 1 else 's'}",
            candidate=one,
            standbys=spare,
            persist_every_s=one.storage.chosen_s,
            summary=runs[f"replicas-{one.replicas}"],
            chosen=one is chosen,
        )
        for one in candidates
    ]
    paper_s = Gemini().persist_every / NS_PER_S
    daly_s = _storage_every_s(case, STORAGE_ONLY)
    found += [
        Alternative("Gemini's defaults", paper, spare, paper_s, runs["gemini"]),
        Alternative("storage only", None, spare, daly_s, runs[STORAGE_ONLY], chosen is None),
    ]
    return candidates, found


def choose(candidates: Sequence[Candidate], ratios: Mapping[int, float]) -> Candidate | None:
    """Take the fewest replicas that fit and whose ratio is not noticeably below the best.

    One replica alone is taken only where two do not fit, or do noticeably worse: with one, every
    lost machine sends the job back to storage.

    Args:
        candidates: one for each number of replicas, ascending.
        ratios: the effective training time ratio of each number of replicas.
    """
    fitting = [one for one in candidates if one.fits]
    if not fitting:
        return None
    good = max(ratios[one.replicas] for one in fitting) - WORTHWHILE
    redundant = [one for one in fitting if one.replicas > 1 and ratios[one.replicas] >= good]
    return redundant[0] if redundant else fitting[0]


def _try_standbys(
    case: Case, chosen: Alternative, closed_form: Standbys, jobs: int
) -> list[Alternative]:
    """Simulate the choice with other numbers of standbys, upwards until they cost more.

    The closed forms take losses for independent. In a trace they come in bursts, which need more.
    """
    machines = case.setup.job.machines
    if chosen.candidate is None:
        return []
    table = chosen.candidate.table

    def named(count: int, summary: Summary) -> Alternative:
        name = f"{count} standby{'' if count == 1 else 's'}"
        return replace(chosen, name=name, standbys=count, summary=summary, chosen=False)

    def tried(count: int) -> Alternative:
        run = _simulate(case, {"castor": table}, count, jobs)["castor"]
        return named(count, run)

    known = {0, closed_form.by_cost, closed_form.by_shortage}
    found = [named(chosen.standbys, chosen.summary)]
    found += [tried(count) for count in sorted(known - {chosen.standbys})]
    count, risen = max(known), 0
    best = min(_cost(machines, one) for one in found)
    while risen < 2 and count < machines:
        count = max(count + 1, count * 3 // 2)
        found.append(tried(count))
        cost = _cost(machines, found[-1])
        risen = 0 if cost < best else risen + 1
        best = min(best, cost)
    return sorted(found, key=lambda one: one.standbys)


def _cost(machines: int, one: Alternative) -> float:
    """Return the machines, standing by or at work, that one machine's useful work takes."""
    mean = one.summary.ratio.mean
    return (machines + one.standbys) / mean if mean > 0 else math.inf


def _cheapest(machines: int, tried: Sequence[Alternative]) -> int:
    least = min(_cost(machines, one) for one in tried)
    return next(one.standbys for one in tried if _cost(machines, one) <= least * (1 + WORTHWHILE))


def _other_placements(case: Case, chosen: Alternative, jobs: int) -> list[Alternative]:
    candidate = chosen.candidate
    if candidate is None or candidate.replicas == 1:
        return []
    kinds = ["group", "ring"] if case.domains is None else ["group", "domains", "ring"]
    placed = {
        kind: _candidate(case, candidate.replicas, kind, chosen.standbys)
        for kind in kinds
        if kind != candidate.kind
    }
    tables = {kind: one.table for kind, one in placed.items()}
    runs = _simulate(case, tables, chosen.standbys, jobs)
    return [
        Alternative(f"{kind} placement", one, chosen.standbys, one.storage.chosen_s, runs[kind])
        for kind, one in placed.items()
    ]


def _recommended(case: Case, chosen: Candidate | None, standbys: int) -> Experiment:
    strategies: dict[str, Table] = {}
    if chosen is not None:
        strategies["castor"] = chosen.table
        strategies["gemini"] = {"kind": "gemini", "placement": "group"}
    strategies[STORAGE_ONLY] = {"kind": STORAGE_ONLY}
    experiment = case.experiment(strategies, standbys=standbys)
    if chosen is None:
        return experiment
    return experiment.model_copy(update={"replicas": chosen.replicas, "placement": chosen.kind})


def _best_placement(case: Case, replicas: int, spare: int) -> Candidate:
    """Take Algorithm 1's placement, unless spreading over domains loses fewer groups."""
    plain = _candidate(case, replicas, "group", spare)
    if case.domains is None or replicas == 1:
        return plain
    spread = _candidate(case, replicas, "domains", spare)
    # A trace that names no racks does not tell: then the ones that survive decide.
    gained = (spread.racks_survived or 0.0) - (plain.racks_survived or 0.0)
    if spread.losses_per_s < plain.losses_per_s or (not case.failing.domain_per_s and gained > 0):
        return spread
    return plain


def _candidate(case: Case, replicas: int, kind: str, spare: int) -> Candidate:
    job, failing = case.setup.job, case.failing
    domains = case.domains.of_machines(job.machines) if case.domains else None
    placement = place(kind, job.machines, replicas, domains=domains)
    traffic_ns = job.network_ns(replicas - 1)
    every = _memory_every(case, traffic_ns)
    strategy = Gemini(replicas=replicas, serialise=0, every=every, update_after="replication")
    profile = strategy.costs(replace(job, replicas=replicas))
    wait_s = _wait_s(case, spare)
    copied_s = (profile.retrieve_peer_ns + profile.replicate_ns) / NS_PER_S
    window_s = case.detection_s + wait_s + copied_s
    losses = group_losses_per_s(
        placement,
        machine_rate_per_s=failing.single_per_s,
        window_s=window_s,
        domains=domains if failing.domain_per_s else None,
        domain_rate_per_s=failing.domain_per_s,
    )
    if failing.sets:
        fatal = sum(not placement.survives(taken) for taken in failing.sets)
        losses += fatal / failing.span_s
    elif failing.groups:
        losses += joint_losses_per_s(placement, failing.groups, failing.span_s)
    memory = memory_need_bytes(placement, job.shard_bytes)
    return Candidate(
        replicas=replicas,
        kind=kind,
        placement=placement,
        every=every,
        traffic_s=traffic_ns / NS_PER_S,
        memory_bytes=memory,
        fits=memory <= case.budget_bytes,
        window_s=window_s,
        losses_per_s=losses,
        racks_survived=racks_survived(placement, domains) if domains else None,
        storage=storage_interval(_two_tier(case, profile, losses, wait_s)),
    )


def _memory_every(case: Case, traffic_ns: int) -> int:
    """Return the period of memory checkpoints, in iterations, that wastes the least time."""
    job = case.setup.job
    return least_wasteful_frequency(
        iteration_s=job.iteration_ns / NS_PER_S,
        traffic_s=traffic_ns / NS_PER_S,
        idle_s=job.network_idle_ns / NS_PER_S,
        failure_rate_per_s=case.failing.per_s,
    ).every


def _wait_s(case: Case, spare: int) -> float:
    """Return the mean time that a lost machine's place stays empty after detection."""
    load = case.failing.lost_per_s * (case.detection_s + case.restore_s)
    none_left = erlang_loss(load, spare)
    activation_s = case.setup.operations.activation_ns / NS_PER_S
    return none_left * case.restore_s + (1 - none_left) * activation_s


def _two_tier(case: Case, profile: StrategyCosts, losses_per_s: float, wait_s: float) -> TwoTier:
    rate = case.failing.per_s
    job = case.setup.job
    lost = min(1.0, losses_per_s / rate) if rate else 0.0
    return TwoTier(
        iteration_s=job.iteration_ns / NS_PER_S,
        failure_rate_per_s=rate,
        memory_survival_probability=1.0 - lost,
        downtime_s=case.detection_s
        + case.failing.hardware_share * wait_s
        + (profile.serialise_ns + profile.warm_up_ns) / NS_PER_S,
        memory_checkpoint_s=(profile.memory_stall_ns + profile.memory_transfer_ns) / NS_PER_S,
        memory_retrieval_s=max(profile.retrieve_own_ns, profile.retrieve_peer_ns) / NS_PER_S,
        storage_stall_s=profile.storage_stall_ns / NS_PER_S,
        storage_checkpoint_s=profile.storage_transfer_ns / NS_PER_S,
        storage_retrieval_s=profile.retrieve_storage_ns / NS_PER_S,
        memory_every=profile.memory_every,
    )


def _storage_every_s(case: Case, kind: str) -> float:
    profile = case.resolve({kind: {"kind": kind}}, standbys=0).costs[kind]
    return profile.storage_every * profile.iteration_ns / NS_PER_S


def _simulate(
    case: Case, tables: Mapping[str, Table], standbys: int, jobs: int
) -> dict[str, Summary]:
    """Run strategies of one case against the same failures."""
    setup = case.resolve(tables, standbys=standbys)
    runs: dict[str, list[Tally]] = {name: [] for name in setup.costs}
    for name, _seed, tally in replications(setup, engine_for(setup), jobs):
        runs[name].append(tally)
    return summarise_runs(setup, runs)

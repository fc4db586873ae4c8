"""An advice in words and as JSON: what, how well, why, compared with what, assuming what."""

from __future__ import annotations

import math
import os
import random
from itertools import groupby
from pathlib import Path

from castor_analysis.advice.advise import MOST_REPLICAS, WORTHWHILE
from castor_analysis.advice.case import DEFAULT_HARDWARE_SHARE, Domains
from castor_analysis.advice.failing import DAY_S
from castor_analysis.advice.found import Advice, Candidate
from castor_analysis.advice.model import (
    BUFFERS,
    STANDBY_SHORTAGE,
    erlang_loss,
    waiting_share,
)
from castor_configs.readable import exact_seconds, format_bps, format_bytes, format_seconds
from castor_policy.frequency import memory_stall
from castor_policy.survival import RecoveryProbability, exact_or_estimate
from castor_sim.experiment import Experiment
from castor_sim.job import NS_PER_S

_FAILURES_AT_ONCE = (1, 2, 3)
_SAMPLES = 20_000


def reasons(advice: Advice) -> list[str]:
    """Return why, a sentence or three for each part of the recommendation."""
    chosen = advice.candidate
    if chosen is None:
        return [_memory_reason(advice), _storage_only_reason(advice), _standby_reason(advice)]
    found = [
        _replica_reason(advice, chosen),
        _memory_reason(advice),
        _traffic_reason(advice, chosen),
        *_survival_reasons(advice, chosen),
        _storage_reason(advice, chosen),
        _standby_reason(advice),
    ]
    return [text for text in found if text]


def train_command(advice: Advice) -> list[str] | None:
    """Return the words of a `castor train` that does what is recommended.

    None where memory does not hold one replica: castor train keeps every checkpoint in memory.
    """
    chosen, job = advice.candidate, advice.case.setup.job
    if chosen is None:
        return None
    words = ["castor", "train", "SCRIPT", "--nodes", str(job.machines)]
    words += ["--ranks-per-node", str(job.gpus_per_machine), "--standby", str(advice.standbys)]
    words += ["--replicas", str(chosen.replicas), "--placement", chosen.placement.kind]
    if chosen.placement.kind == "domains" and advice.case.domains is not None:
        words += ["--domains", _domain_sizes(advice.case.domains, job.machines)]
    words += ["--checkpoint-every", str(chosen.every)]
    every = exact_seconds(round(advice.persist_every_s * NS_PER_S))
    return [*words, "--persist", "FOLDER", "--persist-every", every]


def _domain_sizes(domains: Domains, machines: int) -> str:
    """Return how many consecutive machines share each domain, as castor train takes it."""
    sizes = [len(list(members)) for _, members in groupby(domains.of_machines(machines))]
    if len(set(sizes[:-1]) | {sizes[0]}) == 1 and sizes[-1] <= sizes[0]:
        return str(sizes[0])
    return ",".join(map(str, sizes))


def assumptions(advice: Advice) -> list[str]:
    """Return what was taken for granted, the caller's own figures aside."""
    case = advice.case
    request, setup = case.request, case.setup
    training = setup.experiment.training
    found = []
    if setup.trace is None:
        found.append(
            f"failures are independent (Poisson): {case.failing.source}, "
            f"{request.hardware_share or 0:.0%} of them taking the machine"
            + (
                ""
                if request.hardware_share != DEFAULT_HARDWARE_SHARE
                else " (no source gives the share; --hardware-share sets it)"
            )
        )
    else:
        found.append(
            f"what failed comes back as in the trace ({case.failing.source}), on machines in an "
            "order drawn anew for each replication; "
            + (
                "machines of one domain stay together"
                if case.failing.sets
                else "which of them share a rack is not known"
            )
        )
    if case.domains is not None and case.failing.domain_per_s:
        every = format_seconds(1 / case.failing.domain_per_s)
        found.append(
            f"a {case.domains.kind} of {case.domains.size} machines goes down whole every {every}, "
            "besides (--rack-rate sets it)"
        )
    if case.fleet:
        found.append(
            f"lost machines are repaired, in {format_seconds(case.restore_s)} in the mean, and "
            "return"
        )
    else:
        found.append(
            f"a cloud replaces a lost machine in {format_seconds(case.restore_s)} in the mean "
            '(--set replacement.operator="fleet" for machines that are repaired)'
        )
    found.append(
        f"checkpoint traffic reaches {training.network_efficiency:.0%} of the network's bandwidth; "
        f"the network is idle {format_seconds(setup.job.network_idle_ns / 1e9)} of each iteration "
        f"of {format_seconds(setup.job.iteration_ns / 1e9)}"
    )
    found.append(
        "memory checkpoints need no torch.save at a failure (Castor's own format), and one to "
        "storage does not stop training"
    )
    found.append(
        f"{format_seconds(training.warm_up / 1e9)} of warm-up after a failure, "
        f"{format_seconds(case.detection_s)} to detect one"
    )
    return found


def portable(experiment: Experiment, file: Path) -> Experiment:
    """Return the experiment with its paths as they have to be written in `file`."""
    changes: dict[str, object] = {}
    for key in ("cluster", "model"):
        named = Path(getattr(experiment, key))
        if named.is_file():
            changes[key] = os.path.relpath(named.resolve(), file.resolve().parent)
    return experiment.model_copy(update=changes)


def survival(chosen: Candidate) -> list[tuple[int, RecoveryProbability]]:
    """Return for a few numbers of machines lost at once how likely memory still has everything."""
    rng = random.Random(0)  # noqa: S311 - samples, no secrets
    placement = chosen.placement
    return [
        (count, exact_or_estimate(placement, count, samples=_SAMPLES, rng=rng))
        for count in _FAILURES_AT_ONCE
        if count <= placement.machines
    ]


def _ratio_of(advice: Advice, replicas: int) -> float | None:
    for one in advice.alternatives[: len(advice.candidates)]:
        if one.candidate is not None and one.candidate.replicas == replicas:
            return one.summary.ratio.mean
    return None


def _replica_reason(advice: Advice, chosen: Candidate) -> str:
    ratio = advice.ratio.mean
    copies = "copy" if chosen.replicas == 1 else "copies"
    parts = [f"{chosen.replicas} {copies} of each shard, the machine's own included."]
    fewer = _ratio_of(advice, chosen.replicas - 1)
    if fewer is not None and chosen.replicas == 2:
        parts.append(
            "With one alone, every lost machine sends the whole job back to storage: the ratio "
            f"would be {fewer:.4f} instead of {ratio:.4f}."
        )
    elif fewer is not None:
        parts.append(f"With one fewer the ratio would be {fewer:.4f} instead of {ratio:.4f}.")
    more = next((one for one in advice.candidates if one.replicas == chosen.replicas + 1), None)
    if more is None:
        if chosen.replicas < MOST_REPLICAS:
            parts.append("There is no machine for a further one.")
        return " ".join(parts)
    gained = (_ratio_of(advice, more.replicas) or 0.0) - ratio
    if not more.fits:
        parts.append(f"A further one does not fit the memory; it would bring {gained:+.4f}.")
    elif gained < WORTHWHILE:
        parts.append(
            f"A further one brings {gained:+.4f}, less than the {WORTHWHILE:.4f} for which it "
            "would be worth its memory and traffic."
        )
    return " ".join(parts)


def _memory_reason(advice: Advice) -> str:
    case = advice.case
    shard = format_bytes(case.setup.job.shard_bytes)
    budget = (
        f"{format_bytes(case.budget_bytes)} set aside of a machine's "
        f"{format_bytes(case.setup.cluster.cpu_memory)}"
    )
    chosen = advice.candidate
    fitting = [one.replicas for one in advice.candidates if one.fits]
    wanted = next((one for one in advice.candidates if one.replicas == 2), None)
    if chosen is None:
        one = advice.candidates[0]
        return (
            f"Memory does not hold even one replica: {BUFFERS} buffers of a shard of {shard} are "
            f"{format_bytes(one.memory_bytes)}, more than the {budget}. What would fit: "
            f"{_machines_needed(advice)} machines or more, with as many smaller shards."
        )
    held = chosen.memory_bytes // (BUFFERS * case.setup.job.shard_bytes)
    text = (
        f"CPU memory: {BUFFERS} buffers x {held} shard{'' if held == 1 else 's'} x {shard} = "
        f"{format_bytes(chosen.memory_bytes)} a machine, of the {budget}."
    )
    if wanted is not None and not wanted.fits:
        text += (
            f" Two replicas would need {format_bytes(wanted.memory_bytes)} and do not fit; "
            f"{max(fitting)} does."
        )
        saving = wanted.memory_bytes - case.setup.job.shard_bytes  # 2m - 1 shards of 2m
        if saving <= case.budget_bytes:
            text += (
                f" With --memory saving two take {format_bytes(saving)} and fit: choose "
                "--replicas 2 then."
            )
    return text


def _machines_needed(advice: Advice) -> int:
    job = advice.case.setup.job
    return -(-BUFFERS * job.checkpoint_bytes // max(1, advice.case.budget_bytes))


def _traffic_reason(advice: Advice, chosen: Candidate) -> str:
    if chosen.replicas == 1:
        return "One replica sends nothing to other machines."
    job = advice.case.setup.job
    idle_s = job.network_idle_ns / 1e9
    peers = chosen.replicas - 1
    text = (
        f"Traffic: a shard to {peers} other machine{'' if peers == 1 else 's'} takes "
        f"{format_seconds(chosen.traffic_s)} at {format_bps(job.network_bps)}; the network is idle "
        f"{format_seconds(idle_s)} of each {format_seconds(job.iteration_ns / 1e9)}"
    )
    stall_s = memory_stall(chosen.traffic_s, idle_s, 1)
    if stall_s <= 0:
        return text + ", so it fits and stalls nothing, every iteration."
    text += f", so a checkpoint stalls training {format_seconds(stall_s)} each time"
    if chosen.every == 1:
        return text + "; fewer than one of every iteration would lose more at failures than that."
    share = stall_s / (chosen.every * job.iteration_ns / 1e9)
    return text + (
        f". One of {chosen.every} iterations wastes the least: it costs {share:.2%} of the time, "
        f"and a failure up to {chosen.every} iterations."
    )


def _survival_reasons(advice: Advice, chosen: Candidate) -> list[str]:
    parts = [
        f"{'' if found.method == 'exact' else 'about '}{_percent(found.probability)} for {count}"
        for count, found in survival(chosen)
    ]
    text = (
        f"Placement {chosen.placement.kind}: memory keeps every shard with a chance of "
        f"{', '.join(parts)} machines lost at once. All copies of one are expected to be lost "
        f"{_how_often(chosen.losses_per_year)}; redundancy is back "
        f"{format_seconds(chosen.window_s)} after a loss."
    )
    found = [text]
    domains = advice.case.domains
    if domains is not None and chosen.racks_survived is not None:
        kind = domains.kind
        if chosen.kind == "domains":
            plain = next(
                (one.candidate for one in advice.alternatives if one.name == "group placement"),
                None,
            )
            instead = (
                f" Groups of neighbours survive {_percent(plain.racks_survived)} of them, and lose "
                f"all copies {_how_often(plain.losses_per_year)}."
                if plain is not None and plain.racks_survived is not None
                else ""
            )
            found.append(
                f"Copies lie in different {kind}s (of {domains.size} machines): memory survives "
                f"the loss of {_percent(chosen.racks_survived)} of the {kind}s, one at a time."
                + instead
            )
        else:
            found.append(
                f"Memory survives the loss of {_percent(chosen.racks_survived)} of the {kind}s, "
                "one at a time."
            )
    else:
        found.append(
            "Neither the cluster nor a trace says which machines share a rack or switch (domains): "
            "copies lie on neighbours, which one failure may take together."
        )
    return found


def _storage_reason(advice: Advice, chosen: Candidate) -> str:
    storage = chosen.storage
    took = format_seconds(advice.case.setup.job.storage_ns() / 1e9)
    text = (
        f"To storage every {format_seconds(storage.chosen_s)}, for what memory does not survive; "
        f"a write takes {took}."
    )
    if math.isinf(storage.optimal_s):
        return text + " No failure is expected to need it, so the paper's 3 hours are kept."
    if storage.chosen_s - 1 > storage.optimal_s:
        text += f" The optimum is {format_seconds(storage.optimal_s)}"
        if storage.shortest_s - 1 > storage.optimal_s:
            shortest = format_seconds(storage.shortest_s)
            text += f", but storage keeps time for other work only from {shortest} on"
        if storage.lost > 0:
            text += f"; writing that often would gain {storage.lost:.6f}"
        text += "."
    return text


def _storage_only_reason(advice: Advice) -> str:
    return (
        f"So checkpoints go to storage alone, at Daly's interval: every "
        f"{format_seconds(advice.persist_every_s)}."
    )


def _standby_reason(advice: Advice) -> str:
    case, closed = advice.case, advice.closed_form
    count, load = advice.standbys, closed.load
    machines = case.setup.job.machines
    per_day = case.failing.lost_per_s * DAY_S
    away = "repaired" if case.fleet else "replaced"
    text = (
        f"{count} standby{'' if count == 1 else 's'}: {per_day:.3g} machines are lost a day and "
        f"{away} in {format_seconds(case.restore_s)}, so that {load:.3g} are away in the mean. "
    )
    none = erlang_loss(load, count)
    if count == 0:
        waits = waiting_share(load, 0)
        text += (
            f"The job then waits {_percent(waits)} of the time, which costs "
            f"{machines * waits:.2g} machines' work; a standby costs one machine's."
        )
    else:
        text += (
            f"A lost machine finds none with a chance of {_percent(none)} (Erlang's loss formula); "
            "fewer or more cost more in simulation, waiting and standing by together."
        )
    if closed.by_shortage != count:
        text += f" For a chance below {STANDBY_SHORTAGE:.0%}: {closed.by_shortage}."
    if case.failing.groups and count > closed.by_cost:
        text += " Losses in the trace come in bursts, which take more than the formulas say."
    return text


def _how_often(per_year: float) -> str:
    if per_year >= 1:
        return f"{per_year:.3g} times a year"
    if per_year * 10_000 < 1:
        return "less than once in 10,000 years"
    return f"once in {1 / per_year:,.3g} years"


def _percent(share: float) -> str:
    """Write a share so that what is not certain never reads as 100 %, nor what may be as 0 %."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    digits = max(1, math.ceil(-math.log10(min(share, 1 - share))) - 1)
    return f"{share:.{min(digits, 6)}%}"

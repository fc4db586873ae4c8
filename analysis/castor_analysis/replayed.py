"""What a run met: the part of a trace that was replayed, and recoveries that outlast the MTBF."""

from __future__ import annotations

from typing import Any

from castor_configs.readable import format_seconds
from castor_sim.job import NS_PER_S
from castor_sim.setup import Setup

DAY_S = 86_400.0


def replayed_json(setup: Setup) -> dict[str, Any] | None:
    """Return what result.json says of the replayed part of a trace; None without a trace.

    Times in seconds; `failures` are rows of the trace within the replayed span, each of one
    machine, before thinning.
    """
    trace, failures = setup.trace, setup.experiment.failures
    if trace is None:
        return None
    return {
        "span_s": setup.horizon_ns / NS_PER_S,
        "trace_span_s": trace.span_ns / NS_PER_S,
        "failures": sum(1 for failure in trace.failures if failure.time_ns <= setup.horizon_ns),
        "trace_failures": len(trace.failures),
        "machines": setup.watched,
        "trace_machines": trace.machines,
        "scaled_in_each_replication": failures.rescale and setup.watched != trace.machines,
        "shuffled_in_each_replication": failures.shuffle,
        "kept": failures.keep,
        "durations_used": setup.operations.fleet > 0,
    }


def replayed_words(setup: Setup) -> str:
    """Return the same for a person: the trace, the part that is replayed, and what is ignored.

    Raises:
        ValueError: the experiment replays no trace.
    """
    trace, part = setup.trace, replayed_json(setup)
    if trace is None or part is None:
        raise ValueError("the experiment generates its failures: no trace is replayed")
    found = dict(trace.notes).get("file", "")
    words = [
        f"trace {trace.name}{f' from {found}' if found else ''}: {len(trace.failures):,} failed "
        f"machines, of {trace.machines:,}, in {part['trace_span_s'] / DAY_S:.1f} days"
    ]
    if part["span_s"] < part["trace_span_s"]:
        words.append(
            f"of these the first {part['span_s'] / DAY_S:.1f} days, with {part['failures']:,}"
        )
    if part["scaled_in_each_replication"]:
        way = "thinned" if setup.watched < trace.machines else "laid over itself"
        words.append(f"{way} to {setup.watched:,} machines anew in each replication")
    if part["kept"] < 1:
        words.append(f"{part['kept']:.0%} of them kept")
    known = any(failure.duration_ns is not None for failure in trace.failures)
    if known and not part["durations_used"]:
        words.append(
            "how long they were away is not used: a cloud replaces machines "
            '(replacement.operator = "fleet" uses it)'
        )
    return "; ".join(words)


def long_recoveries(setup: Setup) -> list[str]:
    """Return a sentence for each strategy that is interrupted again before it has recovered.

    That is, by its typical recovery and the mean time between interruptions: such a strategy hardly
    trains, and formulas such as Young's do not hold for it.
    """
    rate = setup.job.interruptions_per_s
    if not rate:
        return []
    found = []
    for name in setup.costs:
        recovery_s = _recovery_s(setup, name)
        if recovery_s > 1 / rate:
            found.append(
                f"{name}: a recovery takes about {format_seconds(recovery_s)}, longer than the "
                f"{format_seconds(1 / rate)} between two interruptions"
            )
    return found


def _recovery_s(setup: Setup, strategy: str) -> float:
    """Return how long a recovery of a lost machine typically takes, its wait for one aside.

    From memory where the strategy keeps any: what it takes when that does not survive is more.
    """
    profile = setup.costs[strategy]
    from_memory = max(profile.retrieve_own_ns, profile.retrieve_peer_ns)
    retrieved = from_memory if profile.memory_every else profile.retrieve_storage_ns
    parts_ns = (
        setup.detections[strategy].typical_ns,
        profile.serialise_ns if profile.memory_every else 0,
        retrieved,
        profile.warm_up_alone_ns if profile.in_place else profile.warm_up_ns,
    )
    return sum(parts_ns) / NS_PER_S

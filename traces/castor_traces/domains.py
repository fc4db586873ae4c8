"""Which machines share a failure domain, as the `domain` column of a trace says."""

from __future__ import annotations

from collections import Counter, defaultdict

from castor_traces.trace import Trace


def domains_of(trace: Trace) -> tuple[str, ...] | None:
    """Return the domain of each machine, "" where no row names one; None if no row does.

    A machine that fails with several domains (its rack, its switch) belongs to the one that its
    rows name most often; of those named as often, to the first by name.
    """
    named: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for failure in trace.failures:
        if failure.domain and failure.machine is not None:
            named[failure.machine][failure.domain] += 1
    if not named:
        return None
    return tuple(
        min(named[machine].items(), key=lambda item: (-item[1], item[0]))[0]
        if machine in named
        else ""
        for machine in range(trace.machines)
    )


def domain_numbers(trace: Trace, machines: int) -> list[int] | None:
    """Return a number for the domain of each of the first `machines` machines, as placements take.

    Machines of which no domain is known have one each. None if the trace names no domain.

    Raises:
        ValueError: the trace has fewer machines.
    """
    if machines > trace.machines:
        raise ValueError(f"trace {trace.name} has {trace.machines} machines, not {machines}")
    names = domains_of(trace)
    if names is None:
        return None
    numbers: dict[str, int] = {}
    found = []
    for machine, name in enumerate(names[:machines]):
        key = name or f"\0{machine}"  # no name of a domain holds a NUL
        found.append(numbers.setdefault(key, len(numbers)))
    return found

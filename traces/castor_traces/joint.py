"""Failures that come together: found within a window, and what they mean for a job's size.

Machines of one rack that lose power are logged seconds apart, and most public logs write minutes,
not nanoseconds. So failures are joint when they begin within a window of the first of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from castor_traces.trace import NS_PER_S, Failure, Trace

WITHIN_NS: Final = 60 * NS_PER_S
"""The window where none is given: a minute, the resolution of most logs."""


def joint_groups(
    failures: Iterable[Failure], within_ns: int = WITHIN_NS
) -> Iterator[tuple[Failure, ...]]:
    """Yield the failures in groups that begin together, in order; most groups hold one.

    A group is what begins at most `within_ns` after its first failure; what comes later begins
    the next one, so that a window never grows with what it finds.

    Args:
        failures: in order of time.
        within_ns: the window in nanoseconds; 0: one instant.

    Raises:
        ValueError: a negative window.
    """
    if within_ns < 0:
        raise ValueError(f"a window is 0 or more nanoseconds long, not {within_ns}")
    group: list[Failure] = []
    for failure in failures:
        if group and failure.time_ns - group[0].time_ns > within_ns:
            yield tuple(group)
            group = []
        group.append(failure)
    if group:
        yield tuple(group)


def machines_of(group: Iterable[Failure]) -> int:
    """Return how many machines a group takes: each once, every "any" another."""
    named: set[int] = set()
    unnamed = 0
    for failure in group:
        if failure.machine is None:
            unnamed += 1
        else:
            named.add(failure.machine)
    return len(named) + unnamed


def chance_of_a_hit(machines: int, group: int, job: int) -> float:
    """Return the chance that `job` random machines of all hold one of a group of failed ones.

    1 - C(machines - group, job) / C(machines, job).
    """
    group = min(group, machines)  # "any" rows may name more failures than there are machines
    if machines - group < job:
        return 1.0
    missed = 1.0
    for member in range(group):
        missed *= (machines - job - member) / (machines - member)
    return 1.0 - missed


def interruptions_per_s(trace: Trace, machines: int, within_ns: int = WITHIN_NS) -> float:
    """Return how often a job on `machines` machines is interrupted, per second.

    A joint failure interrupts a job once, and only if it takes one of its machines. A job smaller
    than the trace runs on random machines of it. A larger one runs on copies of the trace that fail
    independently of each other, as `castor_traces.edit.rescale` lays them over one another.

    Args:
        trace: what failed.
        machines: of the job, at least 1.
        within_ns: failures that begin within it are joint.

    Returns:
        0 for a trace without a span.

    Raises:
        ValueError: fewer than one machine.
    """
    if machines < 1:
        raise ValueError(f"a job has 1 machine or more, not {machines}")
    if not trace.span_ns:
        return 0.0
    sizes = Counter(machines_of(group) for group in joint_groups(trace.failures, within_ns))
    copies, rest = divmod(machines, trace.machines)
    expected = copies * float(sizes.total())
    if rest:
        expected += sum(
            times * chance_of_a_hit(trace.machines, size, rest)
            for size, times in sorted(sizes.items())
        )
    return expected / (trace.span_ns / NS_PER_S)

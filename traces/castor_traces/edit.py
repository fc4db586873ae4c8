"""Turn one trace into another: a part of it, another size, another pace, other machine numbers.

Every function is pure and exact in nanoseconds. Randomness is a hash of (seed, purpose, index):
no generator whose stream may change between versions, so a seed means the same trace everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import groupby

from castor_traces.domains import domain_numbers
from castor_traces.seconds import seconds_text_from_ns
from castor_traces.trace import MAX_MACHINES, NS_PER_S, Failure, Trace, make_trace

Seconds = int | float | Decimal | Fraction


def slice_trace(trace: Trace, start_s: Seconds, end_s: Seconds) -> Trace:
    """Return the failures that begin in [start_s, end_s), counted from `start_s`.

    The end itself belongs to the slice only where it is the trace's own end, so that adjacent
    slices share no failure. A fault that began before `start_s` is left out even if it lasted
    into the slice; a fault that outlasts the slice keeps its whole duration.

    Args:
        trace: any trace.
        start_s: seconds from the start of the trace, at least 0.
        end_s: seconds from the start of the trace, at most its span.

    Raises:
        ValueError: not 0 <= start_s <= end_s <= span.
    """
    start_ns, end_ns = _ns(start_s), _ns(end_s)
    if not 0 <= start_ns <= end_ns <= trace.span_ns:
        raise ValueError(
            f"slice {start_s}..{end_s} s: expected 0 <= start <= end <= "
            f"{seconds_text_from_ns(trace.span_ns)} (the span in seconds)"
        )
    last_ns = end_ns if end_ns == trace.span_ns else end_ns - 1
    failures = [
        replace(failure, time_ns=failure.time_ns - start_ns)
        for failure in trace.failures
        if start_ns <= failure.time_ns <= last_ns
    ]
    text = f"slice {seconds_text_from_ns(start_ns)}..{seconds_text_from_ns(end_ns)} s"
    return _edited(trace, failures, text, span_ns=end_ns - start_ns)


def compress(trace: Trace, factor: Seconds) -> Trace:
    """Return the trace with times, durations and the span divided by `factor`.

    A factor above 1 makes everything happen faster (months replayed in minutes), one below 1
    slower. Each instant is rounded to a nanosecond, half to even: joint failures stay joint and
    the order stays.

    Raises:
        ValueError: the factor is not above 0, or times would pass 292 years.
    """
    ratio = Fraction(factor)
    if ratio <= 0:
        raise ValueError(f"factor must be above 0, not {factor}")
    failures = [
        replace(
            failure,
            time_ns=round(failure.time_ns / ratio),
            duration_ns=None if failure.duration_ns is None else round(failure.duration_ns / ratio),
        )
        for failure in trace.failures
    ]
    return _edited(trace, failures, f"compress by {factor}", span_ns=round(trace.span_ns / ratio))


def merge(traces: Sequence[Trace], *, side_by_side: bool = False) -> Trace:
    """Return one trace with the failures of all.

    Args:
        traces: at least one; all of one span, because a shorter one would fade out midway.
        side_by_side: False: machine i is the same machine in each (say, its hardware failures
            in one trace and its software failures in another), and the result has as many
            machines as the largest. True: the machines of each trace are numbered after those
            of the one before, and failure domains are kept apart.

    Raises:
        ValueError: no traces, or their spans differ.
    """
    if not traces:
        raise ValueError("merge needs at least one trace")
    if len({trace.span_ns for trace in traces}) > 1:
        spans = ", ".join(f"{t.name} {seconds_text_from_ns(t.span_ns)} s" for t in traces)
        raise ValueError(f"merge: the spans differ ({spans}); slice them to one length first")
    failures: list[Failure] = []
    first = 0
    for index, trace in enumerate(traces):
        if side_by_side:
            failures += (_moved(failure, first, index) for failure in trace.failures)
            first += trace.machines
        else:
            failures += trace.failures
    way = "side by side" if side_by_side else "on the same machines"
    return make_trace(
        "+".join(trace.name for trace in traces),
        first if side_by_side else max(trace.machines for trace in traces),
        traces[0].span_ns,
        failures,
        source=_joined(trace.source for trace in traces),
        licence=_joined(trace.licence for trace in traces),
        notes=[("edits", f"merge of {len(traces)} {way}")],
    )


def shuffle_machines(trace: Trace, seed: int) -> Trace:
    """Return the trace with its machines renumbered at random.

    Published traces number machines by first failure or leave the topology out; without this,
    neighbours in the trace would be neighbours in the placement. Joint failures stay joint, and
    the machines of a failure domain stay neighbours: domains come in an order drawn at random, and
    so do the machines of each. A machine of which no domain is known is one by itself.
    """
    order = _order_of_domains(trace, seed)
    failures = [
        f if f.machine is None else replace(f, machine=order[f.machine]) for f in trace.failures
    ]
    return _edited(trace, failures, f"shuffle_machines seed {seed}")


def _order_of_domains(trace: Trace, seed: int) -> list[int]:
    """Return the new number of each machine."""
    drawn = _shuffled(trace.machines, seed, "shuffle")
    domains = domain_numbers(trace, trace.machines)
    if domains is None:
        return drawn
    # Each domain stands where the first of its machines was drawn to.
    place: dict[int, int] = {}
    for machine in sorted(range(trace.machines), key=drawn.__getitem__):
        place.setdefault(domains[machine], len(place))
    ordered = sorted(range(trace.machines), key=lambda m: (place[domains[m]], drawn[m]))
    number = [0] * trace.machines
    for new, machine in enumerate(ordered):
        number[machine] = new
    return number


def rescale(trace: Trace, machines: int, seed: int) -> Trace:
    """Return the trace for another number of machines, at the same failure rate per machine.

    Fewer machines (thinning): a random subset is kept, renumbered in its old order. More
    (superposition): copies of the trace stand side by side, the first as it is, each other one
    moved in time by a random offset (what passes the end comes round to the start); for a
    remainder the last copy is thinned. Failures of one instant are moved and kept as one, so a
    copy's joint failures stay joint, and copies are independent of each other. Failures of "any"
    machine (k at one instant) are thinned as if they hit k distinct machines drawn at random.

    Random offsets blur the hours of the day and, with strong ageing, the years: slice first
    where those matter. A fault that was under way when a copy is cut at the end of its loop does
    not come back at the start.

    Raises:
        ValueError: machines is not 1..2**31-1.
    """
    if not 1 <= machines <= MAX_MACHINES:
        raise ValueError(f"machines must be 1..{MAX_MACHINES}, not {machines}")
    copies, rest = divmod(machines, trace.machines)
    failures: list[Failure] = []
    for copy in range(copies + (1 if rest else 0)):
        part = trace.failures
        if copy == copies:
            part = _thinned(trace, rest, seed)
        if copy:
            offset_ns = _below(trace.span_ns, seed, "offset", copy) if trace.span_ns else 0
            part = tuple(_turned(failure, offset_ns, trace.span_ns) for failure in part)
        failures += (_moved(failure, copy * trace.machines, copy) for failure in part)
    text = f"rescale from {trace.machines} machines to {machines} seed {seed}"
    return _edited(trace, failures, text, machines=machines)


def _thinned(trace: Trace, machines: int, seed: int) -> tuple[Failure, ...]:
    chosen = sorted(_shuffled(trace.machines, seed, "thin")[:machines])
    number = {machine: index for index, machine in enumerate(chosen)}
    kept: list[Failure] = []
    for time_ns, together in groupby(trace.failures, key=lambda failure: failure.time_ns):
        left, wanted = trace.machines, machines
        for index, failure in enumerate(together):
            if failure.machine is not None:
                if failure.machine in number:
                    kept.append(replace(failure, machine=number[failure.machine]))
                continue
            # Draw without replacement: each "any" of one instant is another machine.
            if left and _below(left, seed, "any", time_ns, index) < wanted:
                kept.append(failure)
                wanted -= 1
            left = max(left - 1, 0)
    return tuple(kept)


def _turned(failure: Failure, offset_ns: int, span_ns: int) -> Failure:
    if not offset_ns:
        return failure
    return replace(failure, time_ns=(failure.time_ns + offset_ns) % span_ns)


def _moved(failure: Failure, first: int, copy: int) -> Failure:
    if not copy:
        return failure
    machine = None if failure.machine is None else failure.machine + first
    # Two copies of one rack are two racks.
    domain = f"{failure.domain}~{copy}" if failure.domain else ""
    return replace(failure, machine=machine, domain=domain)


def _edited(
    trace: Trace,
    failures: Iterable[Failure],
    text: str,
    *,
    machines: int | None = None,
    span_ns: int | None = None,
) -> Trace:
    """Return `trace` with other failures, and what was done to it added to its note "edits"."""
    notes = dict(trace.notes)
    notes["edits"] = "; ".join(part for part in (notes.get("edits", ""), text) if part)
    return make_trace(
        trace.name,
        trace.machines if machines is None else machines,
        trace.span_ns if span_ns is None else span_ns,
        failures,
        source=trace.source,
        licence=trace.licence,
        notes=notes.items(),
    )


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _ns(seconds: Seconds) -> int:
    return round(Fraction(seconds) * NS_PER_S)


def _word(seed: int, *path: str | int) -> int:
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def _below(bound: int, seed: int, *path: str | int) -> int:
    # 128 bits scaled down: the bias is below bound / 2**128.
    return _word(seed, *path) * bound >> 128


def _shuffled(count: int, seed: int, purpose: str) -> list[int]:
    return sorted(range(count), key=lambda index: _word(seed, purpose, index))

"""What fails how often, whether it is generated or read off a trace."""

from __future__ import annotations

from dataclasses import dataclass

from castor_configs.errors import InputError
from castor_sim.job import NS_PER_S
from castor_sim.setup import Setup
from castor_traces.joint import joint_groups, machines_of
from castor_traces.trace import Trace

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Failing:
    """What fails how often, whether generated or read off a trace.

    Attributes:
        source: in words.
        per_s: instants of failure of the whole job, software and hardware.
        hardware_share: share of the failed machines that are lost.
        single_per_s: hardware failures of one machine by itself.
        lost_per_s: machines lost by the whole job.
        domain_per_s: how often one domain goes down whole; 0 in a trace.
        groups: of a trace: how many machines each joint failure took.
        sets: of a trace that names failure domains: which machines of the job each of them took.
        span_s: of the trace; 0 without one.
    """

    source: str
    per_s: float
    hardware_share: float
    single_per_s: float
    lost_per_s: float
    domain_per_s: float = 0.0
    groups: tuple[int, ...] = ()
    sets: tuple[frozenset[int], ...] = ()
    span_s: float = 0.0


def generated(
    setup: Setup, rate_per_s: float, hardware_share: float, domain_size: int, source: str
) -> Failing:
    """Say what fails how often where failures are drawn.

    Args:
        setup: of the job.
        rate_per_s: failures of one machine by itself.
        hardware_share: share of them that take the machine.
        domain_size: machines that go down as one; 1: there are no domains.
        source: of the rate, in words.
    """
    machines = setup.job.machines
    whole = setup.experiment.failures.domains
    domain_rate = whole.rate if whole else 0.0
    single = rate_per_s * hardware_share
    together = domain_rate * machines / domain_size
    lost = single * machines + together * domain_size
    failed = rate_per_s * machines + together * domain_size
    return Failing(
        source=f"{rate_per_s * DAY_S:.3g} failures a machine and day ({source})",
        per_s=setup.job.interruptions_per_s,
        hardware_share=lost / failed if failed else 0.0,
        single_per_s=single,
        lost_per_s=lost,
        domain_per_s=domain_rate,
    )


def of_trace(
    setup: Setup, trace: Trace, replayed: Trace, within_ns: int, *, named: bool
) -> Failing:
    """Read the failures off a trace.

    Rates are of all of it; joint failures are those of the first replication, which meets it
    thinned or laid over itself, and its machines in an order of its own.

    Args:
        setup: of the job.
        trace: as it was loaded.
        replayed: as the first replication meets it.
        within_ns: what is joint.
        named: whether its rows name failure domains.
    """
    span_s = trace.span_ns / NS_PER_S
    if span_s <= 0:
        raise InputError(f"trace {trace.name} spans no time; it says nothing", key="--trace")
    machines = setup.job.machines
    lost = [failure for failure in replayed.failures if failure.kind == "hardware"]
    groups = list(joint_groups(lost, within_ns))
    sizes = [machines_of(group) for group in groups]
    sets = [
        frozenset(f.machine for f in group if f.machine is not None and f.machine < machines)
        for group in groups
    ]
    all_lost = sum(1 for failure in trace.failures if failure.kind == "hardware")
    scaled = (
        ""
        if trace.machines == replayed.machines
        else f", scaled to {replayed.machines} machines anew in each replication"
    )
    return Failing(
        source=f"trace {trace.name}: {len(trace.failures):,} failures of {trace.machines:,} "
        f"machines in {span_s / DAY_S:.1f} days{scaled}",
        per_s=setup.job.interruptions_per_s,
        hardware_share=all_lost / len(trace.failures) if trace.failures else 0.0,
        single_per_s=sizes.count(1) / span_s / replayed.machines,
        lost_per_s=all_lost / span_s * machines / trace.machines,
        groups=tuple(sorted(size for size in sizes if size > 1)),
        sets=tuple(one for one in sets if len(one) > 1) if named else (),
        span_s=span_s,
    )

"""The `[failures]` and `[replacement]` tables of an experiment, and what they stand for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from castor_configs.quantities import Fraction01, Nanoseconds, RatePerSecond
from castor_configs.schema import ConfigModel, Count, CountOrZero, Flag
from castor_sim.strategy_costs import MAX_PHASE_NS
from castor_traces.failure_stream import (
    FailureProcess,
    FailureStream,
    GeneratedStream,
    TraceStream,
)
from castor_traces.generators import (
    DomainFailures,
    Lemons,
    LognormalGaps,
    Marks,
    MergedFailures,
    PoissonFailures,
    RegularFailures,
    RenewalFailures,
    WeibullGaps,
)
from castor_traces.joint import WITHIN_NS, interruptions_per_s
from castor_traces.marks import LognormalRepair, RepairTime
from castor_traces.trace import Trace

DAY_S = 86_400.0
NS_PER_S = 1e9


PhaseNs = Annotated[Nanoseconds, Field(le=MAX_PHASE_NS)]
"""A time of 10 years at most."""


class RepairConfig(ConfigModel):
    """Log-normal repair times, for failures that do not say how long they last."""

    median: Nanoseconds = 4 * 3600 * 10**9
    """Half of the repairs are over by then."""
    mean: Nanoseconds = 12 * 3600 * 10**9
    """Their mean; at least the median."""

    @model_validator(mode="after")
    def _ordered(self) -> RepairConfig:
        if not 0 < self.median <= self.mean:
            raise ValueError("`median` has to be above 0 and at most `mean`")
        return self

    def distribution(self) -> RepairTime:
        """Return the distribution of the repair times."""
        return LognormalRepair(self.median / NS_PER_S, self.mean / NS_PER_S)


class LemonsConfig(ConfigModel):
    """Machines that fail again and again."""

    share: Fraction01
    """Share of the machines that are lemons."""
    factor: Annotated[float, Field(gt=0)]
    """How many times as often one of them fails."""


class DomainsConfig(ConfigModel):
    """Failure domains (racks, switches) that go down whole, beside the machines' own failures."""

    size: Count
    """Machines of one domain; domain 0 holds machines 0 .. size - 1."""
    rate: RatePerSecond
    """How often one domain goes down."""


class FailuresConfig(ConfigModel):
    """What fails: a generated process, or a trace."""

    process: Literal["none", "regular", "poisson", "weibull", "lognormal", "trace"] = "poisson"
    """"regular": one failure at a uniform time in each slot of 1/rate, the assumption of the
    paper's closed form; "poisson": independent failures; "weibull", "lognormal": each machine
    renewed by its own failures; "trace": replayed from `trace`."""
    per_day: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Failures a day of the whole job; or give `rate`."""
    rate: RatePerSecond | None = None
    """Failures of one machine, as in "1.5%/day"."""
    shape: Annotated[float, Field(ge=0.1, le=20)] = 0.7
    """Weibull shape of a machine's time between failures; sigma for log-normal."""
    hardware_share: Fraction01 = 1.0
    """Share of the failures that take the machine; a restart fixes the others."""
    lemons: LemonsConfig | None = None
    domains: DomainsConfig | None = None
    trace: str | None = None
    """A trace file, or a data set by name ("infinitehbd", "lanl-20", "bamboo-p3")."""
    shuffle: Flag = True
    """Trace: give its machines to the job's positions in an order drawn from the seed."""
    keep: Fraction01 = 1.0
    """Share of the failures that is kept. Of one seed, a smaller share keeps a part of what a
    larger one keeps, so that runs can be compared failure by failure."""
    within: Nanoseconds = WITHIN_NS
    """Trace: failures that begin within it interrupt the job once, where Young's and Daly's
    intervals and advice ask how often it is interrupted."""
    rescale: Flag = False
    """Trace: thin it or lay it over itself until it has as many machines as the job, in another
    way in each replication."""

    @model_validator(mode="after")
    def _one_source(self) -> FailuresConfig:
        if (self.process == "trace") != (self.trace is not None):
            raise ValueError('`process = "trace"` and `trace = "..."` go together')
        if self.process not in ("none", "trace") and (self.per_day is None) == (self.rate is None):
            raise ValueError(
                "say how often: either `per_day` (failures of the job) or `rate` (of one machine); "
                'to go from one to the other: --set \'failures={process="poisson", rate="1%/day"}\''
            )
        return self

    def rate_per_machine_s(self, machines: int) -> float:
        """Return the failures of one machine per second, domains aside."""
        if self.rate is not None:
            return self.rate
        return (self.per_day or 0.0) / DAY_S / machines

    def expected_per_s(self, machines: int, trace: Trace | None) -> float:
        """Return the expected interruptions of the whole job per second, for intervals.

        Failures that come together interrupt it once (`castor_traces.joint`).
        """
        if trace is not None:
            return interruptions_per_s(trace, machines, self.within) * self.keep
        if self.process == "none":
            return 0.0
        rate = self.rate_per_machine_s(machines) * machines
        if self.lemons:
            rate *= 1 + self.lemons.share * (self.lemons.factor - 1)
        if self.domains:
            rate += self.domains.rate * machines / self.domains.size
        return rate * self.keep

    def generated(self, machines: int, repair: RepairTime | None) -> FailureProcess | None:
        """Return the process; None where nothing fails.

        Args:
            machines: how many there are to fail.
            repair: durations to draw for hardware failures; None leaves them open.
        """
        rate_per_s = self.rate_per_machine_s(machines)
        marks = Marks(hardware_share=self.hardware_share, hardware_repair=repair)
        lemons = Lemons(self.lemons.share, self.lemons.factor) if self.lemons else None
        # A machine under repair does not fail; where its time of repair is not its own matter
        # (a cloud replaces it), whatever holds its position can fail at any time.
        while_down: Literal["none", "keep"] = "none" if repair else "keep"
        parts: list[FailureProcess] = []
        if rate_per_s > 0 and self.process == "regular":
            parts.append(RegularFailures(machines, rate_per_s * machines * DAY_S, marks))
        elif rate_per_s > 0 and self.process == "poisson":
            parts.append(PoissonFailures(machines, rate_per_s, lemons, marks))
        elif rate_per_s > 0 and self.process in ("weibull", "lognormal"):
            gaps: WeibullGaps | LognormalGaps
            if self.process == "weibull":
                gaps = WeibullGaps(self.shape, 1 / rate_per_s)
            else:
                gaps = LognormalGaps(self.shape, 1 / rate_per_s)
            renewal = RenewalFailures(
                machines, gaps, lemons=lemons, marks=marks, while_down=while_down
            )
            parts.append(renewal)
        if self.domains and self.domains.rate > 0:
            whole = Marks(hardware_share=1.0, hardware_repair=repair)
            size = self.domains.size
            parts.append(DomainFailures(machines, size, self.domains.rate, whole))
        if not parts:
            return None
        return MergedFailures(tuple(parts), while_down=while_down)


class ReplacementConfig(ConfigModel):
    """Where a machine comes from when one is lost."""

    operator: Literal["cloud", "fleet"] = "cloud"
    """"cloud": new machines on request; "fleet": a fixed set, repaired and returned."""
    standbys: CountOrZero = 0
    """Machines kept ready beyond the job's own. A fleet replaying a trace has as many as the
    trace has machines beyond the job's."""
    provision: tuple[PhaseNs, PhaseNs] = (240 * 10**9, 420 * 10**9)
    """Cloud: a requested machine comes after a time between these two (Fig. 14: 4 to 7 min)."""
    setup: PhaseNs = 0
    """Cloud: and takes this long to be set up."""
    activation: PhaseNs = 0
    """From detection until a standby has taken over the rank."""
    requests: Literal["first", "dedicated"] = "first"
    """Cloud: a job without a standby takes whichever requested machine comes first, or waits for
    the one requested for it."""
    repair: RepairConfig = RepairConfig()
    """Fleet: repair times where the failures do not give them."""

    @model_validator(mode="after")
    def _ordered(self) -> ReplacementConfig:
        low, high = self.provision
        if low > high:
            raise ValueError("`provision` needs the shorter time first")
        return self


def stream(
    process: FailureProcess | None, trace: Trace | None, seed: int, horizon_ns: int
) -> FailureStream | None:
    """Return the failures of one replication, or None where nothing fails."""
    if trace is not None:
        return TraceStream(trace)
    if process is None:
        return None
    return GeneratedStream(process, seed, horizon_ns)

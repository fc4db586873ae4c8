"""What goes wrong beside failures: tables of an experiment, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from castor_configs.quantities import Nanoseconds, RatePerSecond
from castor_configs.schema import ConfigModel, Count
from castor_sim.corruption import Corruption
from castor_sim.failure_config import PhaseNs, RepairConfig
from castor_sim.pace import FULL_SPEED, Slowdown
from castor_traces.generators import Marks, PoissonFailures


class DurationConfig(RepairConfig):
    """Log-normal times for which a machine is slow."""

    median: Nanoseconds = 3600 * 10**9
    """Half of the times are over by then."""
    mean: Nanoseconds = 2 * 3600 * 10**9
    """Their mean; at least the median."""


class SlowConfig(ConfigModel):
    """What all tables of slow machines share: they become slow independently of each other."""

    rate: RatePerSecond
    """How often one machine becomes slow."""
    set_aside_after: Annotated[PhaseNs, Field(gt=0)] | None = None
    """Where a standby is free it takes the place of a machine that has been slow for so long;
    looked at as often. By default slow machines are waited for."""
    duration: DurationConfig = DurationConfig()

    def slowdowns(
        self, speed: float, machines: int, seed: int, horizon_ns: int, kind: str
    ) -> Iterator[Slowdown]:
        """Yield the slowdowns of one replication.

        Args:
            speed: of training with one of them, in shares of full speed.
            machines: how many there are.
            seed: of the replication.
            horizon_ns: its end.
            kind: names the stream that they are drawn from.
        """
        thousandths = min(FULL_SPEED - 1, max(1, round(speed * FULL_SPEED)))
        aside_ns = self.set_aside_after or 0
        arrivals = _arrivals(self.rate, self.duration, machines, seed, horizon_ns, kind)
        for time_ns, machine, duration_ns in arrivals:
            yield Slowdown(time_ns, machine, thousandths, duration_ns, aside_ns)


class StragglersConfig(SlowConfig):
    """Machines that compute more slowly for a while; all others wait for them."""

    speed: Annotated[float, Field(ge=0.001, le=0.999)] = 0.7
    """Of such a machine, as a share of full speed."""

    def training_speed(self) -> float:
        """Return that of the job."""
        return self.speed


class SlowLinksConfig(SlowConfig):
    """Links that carry less for a while: that much longer the network is busy in each iteration."""

    bandwidth: Annotated[float, Field(ge=0.001, le=0.999)] = 0.5
    """Of such a link, as a share of its full bandwidth."""

    def training_speed(self, iteration_ns: int, network_idle_ns: int) -> float:
        """Return that of the job, of which an iteration keeps the network idle for a time."""
        busy_ns = max(0, iteration_ns - network_idle_ns)
        return iteration_ns / (iteration_ns + busy_ns * (1 / self.bandwidth - 1))


class SeenConfig(RepairConfig):
    """Log-normal times until a silent error is seen."""

    median: Nanoseconds = 3600 * 10**9
    """Half of the errors are seen by then."""
    mean: Nanoseconds = 3 * 3600 * 10**9
    """Their mean; at least the median."""


class CorruptionConfig(ConfigModel):
    """Errors in what machines compute, that are seen later; checkpoints since then hold them."""

    rate: RatePerSecond
    """How often one machine errs."""
    persistent_kept: Annotated[Count, Field(le=1_000_000)] = 2
    """Persistent checkpoints that are kept, as `castor train --persist-keep` has it; one from
    before the error is loaded, else training starts anew."""
    seen_after: SeenConfig = SeenConfig()

    def corruptions(self, machines: int, seed: int, horizon_ns: int) -> Iterator[Corruption]:
        """Yield those of one replication.

        Args:
            machines: how many there are.
            seed: of the replication.
            horizon_ns: its end.
        """
        kind = "silent corruption"
        arrivals = _arrivals(self.rate, self.seen_after, machines, seed, horizon_ns, kind)
        for time_ns, _, seen_after_ns in arrivals:
            yield Corruption(time_ns, seen_after_ns)


def _arrivals(
    rate: float, lasting: RepairConfig, machines: int, seed: int, horizon_ns: int, kind: str
) -> Iterator[tuple[int, int, int]]:
    """Yield what comes over machines independently of each other: when, over which, how long."""
    if not rate:
        return
    marks = Marks(hardware_share=1.0, hardware_repair=lasting.distribution())
    for block in PoissonFailures(machines, rate, marks=marks).blocks(seed, horizon_ns, kind):
        columns = (block.time_ns, block.machine, block.duration_ns)
        yield from zip(*(one.tolist() for one in columns), strict=True)

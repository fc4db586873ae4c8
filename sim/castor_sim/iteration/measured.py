"""The profile of a measured iteration, as `castor calibrate` writes it; docs/iteration.md."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from castor_configs.load import load_toml
from castor_configs.quantities import BitsPerSecond, Bytes, Nanoseconds, parse_bps
from castor_configs.schema import ConfigModel, Count, Name
from castor_policy.chunk_schedule import BITS_NS, Link
from castor_sim.iteration.measured_steps import (
    Issue,
    Step,
    StepLine,
    check_steps,
    step_tasks,
)
from castor_sim.iteration.tasks import Task

FORMAT = "castor-iteration-profile-2"


def _parse_rate(value: object) -> int:
    return 0 if value == "" else parse_bps(value)


def _rate_text(rate_bps: int) -> str:
    if rate_bps == 0:
        return ""
    mega, rest = divmod(rate_bps, 10**6)
    return f"{rate_bps}bps" if rest else f"{mega}Mbps"


NominalRate = Annotated[
    int, BeforeValidator(_parse_rate), PlainSerializer(_rate_text, return_type=str)
]
"""A link's rate; the empty text, held as 0, says that it is not known."""


class MeasuredHop(ConfigModel):
    """One hop's cost f(s) = alpha + s/B, of one rank while all ranks of its machine use it."""

    alpha: Nanoseconds = 0
    bandwidth: Annotated[BitsPerSecond, Field(gt=0)]

    def link(self) -> Link:
        """Return the hop as the policy takes it."""
        return Link(self.alpha, self.bandwidth)


class MeasuredCollectives(ConfigModel):
    """What a collective of s bytes costs: alpha + s * wire_share / bandwidth."""

    alpha: Nanoseconds = 0
    """Of each, whatever its size."""
    bandwidth: Annotated[BitsPerSecond, Field(gt=0)] | None = None
    """Of a rank's link, for what collectives carry; by default that of `[network]`."""
    wire_share: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """For each operation, the share of its bytes that passes a rank's link, one way; in a ring of
    R ranks (R - 1)/R to gather, and twice that to reduce for all."""


class MeasuredProfile(ConfigModel):
    """An iteration without checkpoints as it was measured: the main thread's steps."""

    format: Literal["castor-iteration-profile-2"]
    """This format and its number; another number, another meaning."""
    name: Name
    source: str = ""
    """Which run it was measured in."""
    compute: Literal["real", "paced"] = "real"
    """Whether layers were computed, or waited for."""
    machines: Count = 1
    """That trained in the measured run."""
    gpus: Count = 1
    """GPUs (ranks) of a machine, which share its network card."""
    replicas: Count | None = None
    """m of the measured run; by default the experiment's."""
    shard: Annotated[Bytes, Field(gt=0)]
    """What travels of one rank: its part of the checkpoint."""
    link: NominalRate = 0
    """Nominal rate of a machine's network link; "": not known."""
    update: Nanoseconds = 0
    """From the moment before the update to the end of the iteration."""
    update_traffic: Nanoseconds = 0
    """Its part in which it uses the network itself."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Standard deviation of a computation's time over its mean."""
    capture: Nanoseconds = 0
    """From the hand-over of a checkpoint until its first chunk may leave."""
    commit: Nanoseconds = 0
    """Records and agreement, from the last chunk in CPU memory on; the update waits for them."""
    late: Nanoseconds = 0
    """By how much a span opens later at the other end: ranks are not at one point at one time."""
    free_gpu_memory: Bytes | None = None
    """GPU memory that training leaves; by default the experiment's assumption."""
    network: MeasuredHop
    """From rank to rank of another machine, as checkpoints use it."""
    copy_to_cpu: MeasuredHop | None = Field(default=None, alias="copy")
    """From GPU to CPU memory; without it there is no such hop."""
    collectives: MeasuredCollectives = MeasuredCollectives()
    """How the time of a collective depends on bytes and bandwidth."""
    steps: list[StepLine] = Field(min_length=1)
    """What the main thread did from the end of an iteration to the next update."""

    @model_validator(mode="after")
    def _can_run(self) -> MeasuredProfile:
        check_steps(self.steps)
        return self

    def tasks(self) -> tuple[Task, ...]:
        """Return the iteration as operations; see `measured_steps.step_tasks`."""
        return step_tasks(self.steps, self.update, self.update_traffic)

    def at_link(self, bandwidth_bps: int) -> MeasuredProfile:
        """Return the iteration as it would be at another nominal rate of the machines' links.

        What bytes cost on the network, of collectives and of checkpoints, changes by the ratio of
        the rates; start-up times, computing and the update stay as they are.

        Args:
            bandwidth_bps: nominal, as `link` is.

        Raises:
            ValueError: the rate is none, or the profile does not say its own.
        """
        if bandwidth_bps <= 0:
            raise ValueError(f"a link has more than 0 bit/s, not {bandwidth_bps}")
        if self.link == 0:
            raise ValueError(
                f"profile {self.name} does not say at which rate of the links it was measured: "
                "set link"
            )
        longer = Fraction(self.link, bandwidth_bps)
        network = MeasuredHop.model_construct(
            alpha=self.network.alpha, bandwidth=max(1, round(self.network.bandwidth / longer))
        )
        collectives = self.collectives
        if collectives.bandwidth is not None:
            scaled = max(1, round(collectives.bandwidth / longer))
            collectives = collectives.model_copy(update={"bandwidth": scaled})
        changed = {
            "link": bandwidth_bps,
            "network": network,
            "collectives": collectives,
            "steps": [self._longer(step, longer) for step in self.steps],
        }
        return self.model_copy(update=changed)

    def _longer(self, step: Step, longer: Fraction) -> Step:
        if not isinstance(step, Issue):
            return step
        share = self.collectives.wire_share.get(step.operation, 0.0)
        bandwidth_bps = self.collectives.bandwidth or self.network.bandwidth
        on_wire = Fraction(share) * step.size_bytes * BITS_NS / bandwidth_bps
        # What the fit says beyond what was measured was not there.
        scaled_ns = round(min(on_wire, Fraction(step.duration_ns)) * (longer - 1))
        return Issue(step.operation, step.size_bytes, step.duration_ns + scaled_ns)


def load_profile(path: str | Path) -> MeasuredProfile:
    """Load a profile.

    Raises:
        InputError: the file cannot be read, or something in it is wrong.
    """
    return load_toml(path, MeasuredProfile)

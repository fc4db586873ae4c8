"""A cluster: its machines, links, storage and price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field

from castor_configs.find import find_config
from castor_configs.load import load_toml
from castor_configs.quantities import BitsPerSecond, Bytes, Fraction01, Seconds
from castor_configs.schema import ConfigModel, Count, Name
from castor_policy.defaults import NETWORK_EFFICIENCY

PositiveBps: TypeAlias = Annotated[BitsPerSecond, Field(gt=0)]
PositiveBytes: TypeAlias = Annotated[Bytes, Field(gt=0)]
Share: TypeAlias = Annotated[Fraction01, Field(gt=0)]


class Storage(ConfigModel):
    """Remote persistent storage, which all machines share."""

    bandwidth: PositiveBps
    """Aggregate bandwidth, in bits per second. All machines share it."""
    per_machine_bandwidth: PositiveBps | None = None
    """Most that one machine gets of it, in bits per second, if there is such a limit."""


class FailureDomains(ConfigModel):
    """How many consecutive machines share what fails as a whole; left out where unknown."""

    machines_per_rack: Count | None = None
    """Machines in one rack."""
    machines_per_switch: Count | None = None
    """Machines under one switch."""
    machines_per_power_feed: Count | None = None
    """Machines on one power feed."""


class Calibration(ConfigModel):
    """What training reaches of the hardware: the few figures behind `castor iterate`.

    The defaults are round numbers for a cluster that nobody has measured; docs/iteration.md says
    how those of p3dn and p4d were fitted, and how well they predict what they were not fitted on.
    """

    compute_efficiency: Share = 0.3
    """Share of the GPU's peak that the layers' arithmetic reaches."""
    collective_efficiency: Share = 0.5
    """Share of the network bandwidth that all-gather and reduce-scatter reach."""
    checkpoint_efficiency: Share = NETWORK_EFFICIENCY
    """Share of the network bandwidth that checkpoint chunks reach, all GPUs sending at once: fitted
    to this cluster, where `training.network_efficiency` of an experiment is for any."""
    copy_efficiency: Share = 0.6
    """Share of the GPU-to-CPU bandwidth that copies of chunks reach."""
    gradient_check: Seconds = 0.0
    """Time for 1e9 parameters of one GPU's shard from the last gradient to the update (overflow,
    norm, clipping): the network is idle and the model state is not written yet."""
    update: Seconds = 0.03
    """Time of the optimizer's update for 1e9 parameters of one GPU's shard."""
    source: str = ""
    """Where the figures come from."""


class Cluster(ConfigModel):
    """Machines that train one model together; every figure is of one machine unless it says not."""

    name: Name
    """Name, by which a model's measured times refer to the cluster."""
    machines: Count
    """Machines that train, standbys not counted."""
    gpus_per_machine: Count
    """GPUs in one machine."""
    gpu: Name
    """Name of the GPU."""
    gpu_memory: PositiveBytes
    """Memory of one GPU, in bytes."""
    cpu_memory: PositiveBytes
    """CPU memory of one machine, in bytes."""
    network_bandwidth: PositiveBps
    """Bandwidth of one machine's network links together, in bits per second."""
    network_alpha: Seconds
    """Start-up time of one transfer over the network, in seconds: alpha of f(s) = alpha + s/B."""
    gpu_to_cpu_bandwidth: PositiveBps
    """Bandwidth from one machine's GPUs together to its CPU memory, in bits per second."""
    storage: Storage
    """The remote persistent storage."""
    gpu_peak_tflops: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Peak of one GPU in the precision that trains, in 1e12 floating point operations a second."""
    gpu_link_bandwidth: PositiveBps | None = None
    """Bandwidth of one GPU to the others of its machine, one direction, in bits per second."""
    calibration: Calibration = Calibration()
    """What training reaches of the hardware."""
    gpu_hour_price: Annotated[float, Field(strict=True, ge=0, le=1e6)]
    """Price of one GPU for an hour, in `currency`."""
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"
    """Three-letter code of the price's currency."""
    domains: FailureDomains = FailureDomains()
    """What fails together."""
    source: str = ""
    """Where the figures come from."""

    @property
    def gpus(self) -> int:
        """All GPUs of the cluster."""
        return self.machines * self.gpus_per_machine


def load_cluster(
    name_or_path: str | Path, *, relative_to: Path | None = None, overrides: Sequence[str] = ()
) -> Cluster:
    """Return the cluster of this name or in this file; see `find_config` and `load_toml`.

    Raises:
        InputError: there is none, or its file is faulty.
    """
    path = find_config("clusters", name_or_path, relative_to=relative_to)
    return load_toml(path, Cluster, overrides=overrides)

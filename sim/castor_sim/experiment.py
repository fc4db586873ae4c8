"""An experiment: one job on one cluster under one kind of failures, with several strategies."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
)

from castor_configs.errors import InputError
from castor_configs.plugins import module_from, not_one_of
from castor_configs.quantities import BitsPerSecond, Bytes, Fraction01, Nanoseconds
from castor_configs.schema import ConfigModel, Count, CountOrZero, Name
from castor_policy.defaults import NETWORK_EFFICIENCY
from castor_sim import strategies as built_in
from castor_sim.detection import DetectionConfig
from castor_sim.failure_config import FailuresConfig, ReplacementConfig
from castor_sim.iteration_config import IterationConfig
from castor_sim.strategies import BUILT_IN, STRATEGIES, PlacementName, Strategy
from castor_sim.strategy_costs import MAX_HORIZON_NS
from castor_sim.trouble_config import CorruptionConfig, SlowLinksConfig, StragglersConfig


class TrainingConfig(ConfigModel):
    """What the job's training takes; what is not given follows from model and cluster."""

    iteration: Annotated[Nanoseconds, Field(gt=0)] | None = None
    """T_iter without checkpoints; by default the model's on this cluster."""
    checkpoint_size: Annotated[Bytes, Field(gt=0)] | None = None
    """The whole model state; by default the model's parameters times its bytes a parameter."""
    warm_up: Nanoseconds = 253 * 10**9
    """From loaded states to the first iteration (Gemini, Fig. 14)."""
    network_idle: Nanoseconds | None = None
    """Idle network time in one iteration; by default the model's on this cluster, else
    `idle_share` of the iteration."""
    idle_share: Fraction01 = 10.0 / 65.0
    """Share of an iteration in which the network is idle (Gemini, Fig. 7, 8: 10.0 s of 65.0)."""
    network_efficiency: Annotated[float, Field(gt=0, le=1)] = NETWORK_EFFICIENCY
    """What checkpoint traffic reaches of the network bandwidth, on any cluster; `castor iterate`
    takes the cluster's `calibration.checkpoint_efficiency` unless this is given."""
    torch_save: Annotated[BitsPerSecond, Field(gt=0)] = 7_430_000_000
    """torch.save on one machine (Gemini sec. 7.3: 81 s for 75.2 GB)."""
    storage_jobs: Annotated[Count, Field(le=1_000_000)] = 1
    """Jobs that share the persistent storage, this one included; each gets an equal part."""


_PLACE = re.compile(r"[^:]+:[A-Za-z_]\w*")


def _from_outside(kind: str) -> str:
    if kind not in STRATEGIES and not _PLACE.fullmatch(kind):
        raise ValueError(f"{not_one_of(kind, tuple(STRATEGIES))}; one in a file is file.py:Class")
    return kind


class OwnStrategy(ConfigModel):
    """A strategy of somebody's own, with options that only it knows."""

    model_config = ConfigDict(extra="allow")

    kind: Annotated[str, AfterValidator(_from_outside)]
    """file.py:Class, relative to the experiment's folder, package.module:Class, or the name of a
    plugin's."""


def _kind_of(value: object) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) and kind in BUILT_IN else "own"


AnyStrategy = Annotated[
    Annotated[built_in.NoCheckpoint, Tag("none")]
    | Annotated[built_in.Strawman, Tag("strawman")]
    | Annotated[built_in.HighFreq, Tag("highfreq")]
    | Annotated[built_in.Young, Tag("young")]
    | Annotated[built_in.Daly, Tag("daly")]
    | Annotated[built_in.CheckFreq, Tag("checkfreq")]
    | Annotated[built_in.Gemini, Tag("gemini")]
    | Annotated[built_in.JustInTime, Tag("jit")]
    | Annotated[OwnStrategy, Tag("own")],
    Discriminator(_kind_of),
]


def _kind_from_name(value: object) -> object:
    """Let `[strategies.gemini]` do without `kind = "gemini"`."""
    if not isinstance(value, dict):
        return value
    return {
        name: {"kind": name, **table} if isinstance(table, dict) else table
        for name, table in value.items()
    }


class Experiment(ConfigModel):
    """The whole of an experiment's TOML file; see configs/experiments for written ones."""

    name: Name
    description: str = ""
    cluster: Name
    """A cluster of configs/clusters by name, or a path."""
    model: Name
    """A model of configs/models by name, or a path."""
    machines: Annotated[Count, Field(le=1_000_000)] | None = None
    """Machines of the job, up to a million; by default the cluster's."""
    replicas: Count = 2
    """m, copies of each shard in CPU memory, its own machine's included."""
    placement: PlacementName = "group"
    """Where replicas go."""
    placement_domains: Count | None = None
    """Machines of one failure domain, for the "domains" placement."""
    duration: Annotated[Nanoseconds, Field(gt=0, le=MAX_HORIZON_NS)] | None = None
    """How long to simulate; by default 365 days, with a trace its span, which is also the most."""
    iterations: Count | None = None
    """Stop once this many iterations are done."""
    seed: CountOrZero = 1
    """The first seed; replication i runs with seed + i."""
    seeds: Count = 20
    """Replications."""
    gpu_hour_price: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Price of one GPU for an hour; by default the cluster's."""
    training: TrainingConfig = TrainingConfig()
    detection: DetectionConfig = DetectionConfig()
    replacement: ReplacementConfig = ReplacementConfig()
    iteration: IterationConfig = IterationConfig()
    """How one iteration is laid out; `castor iterate` alone reads it."""
    failures: FailuresConfig
    stragglers: StragglersConfig | None = None
    slow_links: SlowLinksConfig | None = None
    silent_corruption: CorruptionConfig | None = None
    strategies: Annotated[
        dict[Name, SerializeAsAny[AnyStrategy]], BeforeValidator(_kind_from_name)
    ] = Field(min_length=1)
    """What is compared, a table each: its name is its `kind`, unless it says another."""


def load_strategy(own: OwnStrategy, folder: Path) -> Strategy:
    """Return the user's strategy that `own` names, its options checked by its own class.

    Args:
        own: the table of the experiment.
        folder: where a file is looked for.

    Raises:
        InputError: the file, module or class is not there, or an option is wrong.
    """
    found = _class_at(own.kind, folder) if ":" in own.kind else STRATEGIES[own.kind]
    try:
        return found.model_validate(own.model_dump())
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise InputError(f"options of {own.kind}: {faults}", key="strategies") from error


def _class_at(kind: str, folder: Path) -> type[Strategy]:
    place, _, name = kind.rpartition(":")
    if place.endswith(".py"):
        module = module_from(folder / place)
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise InputError(f"cannot import {place}: {error}", key="kind") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise InputError(
            f"{kind} is no strategy; expected a subclass of castor_sim.strategies.Strategy",
            key="kind",
        )
    return found


@contextmanager
def of_strategy(table: Strategy | OwnStrategy) -> Iterator[None]:
    """Say whose code it was where a user's own strategy raises something, or returns nonsense.

    Raises:
        ValueError: naming the file and class; errors of a built-in strategy pass as they are.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(table, OwnStrategy):
            raise
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"costs() of {table.kind}: {what}") from error

"""Checkpoint strategies: each turns a job into `StrategyCosts`, and that is all there is to one.

A strategy of your own is a subclass of `Strategy` in a file of your own, named in the experiment
as `kind = "my_file.py:MyStrategy"`; its fields are the keys of its table. examples/ has one. A name
of its own it has by one line more (CONTRIBUTING.md).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field, model_validator

from castor_configs.plugins import Registry
from castor_configs.quantities import Nanoseconds
from castor_configs.schema import ConfigModel, Count, Flag
from castor_policy import frequency
from castor_policy.defaults import PERSIST_EVERY_S
from castor_sim.detection import DetectionConfig
from castor_sim.job import NS_PER_S, Job
from castor_sim.strategy_costs import StrategyCosts

PlacementName = Literal["group", "ring", "random", "domains"]
"""Placements by name; "group" is Algorithm 1, "mixed" where m does not divide N."""


_PERSIST_EVERY_NS = round(PERSIST_EVERY_S) * NS_PER_S

SPARE_PERCENT = 18
"""Of a restart's time, what it takes to go on in place where a warm spare takes the lost place."""

ALONE_PERCENT = 41
"""The same where a process builds its engine alone.

Both as measured with Castor: 0.136 s and 0.303 s of 0.739 s (docs/results/recovery.md, "restart").
"""


class Strategy(ConfigModel):
    """The interface: options as fields, one method.

    Attributes:
        kind: which strategy; a name of this module's, or `file.py:Class`.
    """

    kind: str
    replicas: Count | None = None
    """m, where it is to be another than the experiment's."""
    placement: PlacementName | None = None
    """Where replicas go, where it is to be another than the experiment's."""
    detection: DetectionConfig | None = None
    """How failures are found out, where it is to be otherwise than the experiment's."""

    @abstractmethod
    def costs(self, job: Job) -> StrategyCosts:
        """Return the figures that the engines run for `job`."""


class NoCheckpoint(Strategy):
    """No checkpoint at all: each failure starts training anew."""

    kind: Literal["none"] = "none"

    def costs(self, job: Job) -> StrategyCosts:
        """Iterations and the start; nothing else costs anything."""
        return StrategyCosts(iteration_ns=job.iteration_ns, warm_up_ns=job.warm_up_ns)


class StorageStrategy(Strategy):
    """What all strategies on persistent storage share (docs/paper.md, sec. 7).

    torch.save stops training; the transfer to storage goes on beside it. A recovery reads
    everything back and passes it through torch.load.
    """

    save: Nanoseconds | None = None
    """Time that torch.save stops training; by default the shard's size over torch.save's rate."""
    load: Nanoseconds | None = None
    """Time of torch.load at recovery; by default as long as torch.save."""

    def save_ns(self, job: Job) -> int:
        """Stall of one checkpoint."""
        return job.serialisation_ns() if self.save is None else self.save

    def load_ns(self, job: Job) -> int:
        """Retrieval: read from storage, then torch.load."""
        load_ns = job.serialisation_ns() if self.load is None else self.load
        return job.storage_ns() + load_ns

    def asynchronous(self, job: Job, every: int) -> StrategyCosts:
        """A checkpoint every `every` iterations that stops training only for torch.save."""
        return StrategyCosts(
            iteration_ns=job.iteration_ns,
            storage_every=every,
            storage_stall_ns=self.save_ns(job),
            storage_transfer_ns=job.storage_ns(),
            retrieve_storage_ns=self.load_ns(job),
            warm_up_ns=job.warm_up_ns,
        )


class Strawman(StorageStrategy):
    """A checkpoint to storage every 3 hours, as BLOOM's training had it (docs/paper.md, sec. 7)."""

    kind: Literal["strawman"] = "strawman"
    every: Nanoseconds = _PERSIST_EVERY_NS
    """Time between checkpoints."""

    def costs(self, job: Job) -> StrategyCosts:
        """The period rounded to whole iterations."""
        every = frequency.nearest_period(self.every, job.storage_ns(), job.iteration_ns)
        return self.asynchronous(job, every)


class HighFreq(StorageStrategy):
    """As often as storage takes it: every ceil(t_ckpt / T_iter) iterations (Gemini sec. 7)."""

    kind: Literal["highfreq"] = "highfreq"
    every_iterations: Count | None = None
    """Period in iterations, instead of the one that the storage bandwidth gives."""

    def costs(self, job: Job) -> StrategyCosts:
        """The shortest period that Eq. 2 allows, unless one is given."""
        shortest = frequency.shortest_period(job.storage_ns(), job.iteration_ns)
        return self.asynchronous(job, self.every_iterations or shortest)


class Young(StorageStrategy):
    """Blocking checkpoints to storage at Young's interval sqrt(2 delta M)."""

    kind: Literal["young"] = "young"

    def interval_s(self, job: Job) -> float:
        """Training time between checkpoints, from the job's failure rate."""
        return frequency.young_interval_s(self._cost_s(job), self._mtbf_s(job))

    def _cost_s(self, job: Job) -> float:
        return (self.save_ns(job) + job.storage_ns()) / NS_PER_S

    def _mtbf_s(self, job: Job) -> float:
        return 1 / job.interruptions_per_s if job.interruptions_per_s else math.inf

    def costs(self, job: Job) -> StrategyCosts:
        """Save and transfer both stop training; without failures, no checkpoint is taken."""
        interval_s = self.interval_s(job) if job.interruptions_per_s else 0.0
        interval_ns = round(interval_s * NS_PER_S)
        every = frequency.nearest_period(interval_ns, 0, job.iteration_ns) if interval_s else 0
        return self.asynchronous(job, every)._replace(
            storage_stall_ns=self.save_ns(job) + job.storage_ns(), storage_transfer_ns=0
        )


class Daly(Young):
    """As `Young`, at Daly's higher-order interval (2006)."""

    kind: Literal["daly"] = "daly"  # type: ignore[assignment]  # narrower than Young's on purpose

    def interval_s(self, job: Job) -> float:
        """Training time between checkpoints, from the job's failure rate."""
        return frequency.daly_interval_s(self._cost_s(job), self._mtbf_s(job))


class CheckFreq(StorageStrategy):
    """Snapshot to CPU memory, persist in the background, as often as a stall budget allows.

    After CheckFreq (FAST '21): the snapshot overlaps the next iteration and stalls training only
    for what does not fit; the period is the shortest that keeps the stall within the budget and
    lets one checkpoint persist before the next.
    """

    kind: Literal["checkfreq"] = "checkfreq"
    stall_budget: Annotated[float, Field(gt=0, le=1)] = 0.035
    """Share of the training time that may be spent on stalls."""

    def costs(self, job: Job) -> StrategyCosts:
        """Snapshots pass the CPU memory of the trainer, so a failure aborts the one in flight."""
        stall_ns = max(0, job.gpu_copy_ns() - job.iteration_ns)
        persist_ns = min(job.gpu_copy_ns(), job.iteration_ns) + self.save_ns(job) + job.storage_ns()
        for_budget = math.ceil(stall_ns / (self.stall_budget * job.iteration_ns))
        every = max(frequency.shortest_period(persist_ns, job.iteration_ns), for_budget)
        return self.asynchronous(job, every)._replace(
            storage_stall_ns=stall_ns, storage_transfer_ns=persist_ns
        )


class Gemini(Strategy):
    """Checkpoints in the CPU memory of m machines, between the training traffic (the paper)."""

    kind: Literal["gemini"] = "gemini"
    every: Count = 1
    """Period of memory checkpoints in iterations."""
    update_after: Literal["capture", "replication"] = "capture"
    """How long the traffic of a checkpoint may take without training waiting for it: the whole
    period ("capture"), or until the next update ("replication", the default of the runtime's
    `Checkpointer`). Where every iteration is checkpointed, there is no difference."""
    persist_every: Nanoseconds = _PERSIST_EVERY_NS
    """Period of persistent checkpoints; 0: none."""
    serialise: Nanoseconds | None = None
    """torch.save of the memory checkpoints at a failure; by default all m replicas of a shard at
    torch.save's rate (the paper's 162 s). Castor's own memory format needs none: "0s"."""
    in_place: Flag = False
    """Where memory serves, only trainers that are lost are started anew; the others keep process,
    engine and device context, as Castor's do under `Checkpointer.iteration()`."""
    warm_spares: Flag = False
    """In place: beside each machine's trainers others stand with their engines built, and take the
    place of those that fail there, as with `castor train --warm-spares`."""
    warm_up_in_place: Nanoseconds | None = None
    """In place, warm-up where spares took all lost places; by default 18 % of `training.warm_up`,
    as measured with Castor."""
    warm_up_alone: Nanoseconds | None = None
    """In place, warm-up where a process has to build its engine first, as on another machine, and
    the time to build a spare; by default 41 % of `training.warm_up`, as measured with Castor."""

    @model_validator(mode="after")
    def _only_in_place(self) -> Gemini:
        if self.in_place:
            return self
        for key in ("warm_spares", "warm_up_in_place", "warm_up_alone"):
            if getattr(self, key):
                raise ValueError(f"`{key}` is for recoveries in place: add `in_place = true`")
        return self

    def costs(self, job: Job) -> StrategyCosts:
        """Traffic that finds no idle time stalls training.

        A checkpoint is complete when the iteration that carries its last traffic ends.
        """
        remote = job.replicas - 1
        traffic_ns = job.network_ns(remote)
        within = self.every if self.update_after == "capture" else 1
        stall_ns = frequency.memory_stall(traffic_ns, job.network_idle_ns, within)
        needed = -(-(traffic_ns - stall_ns) // job.network_idle_ns) if traffic_ns else 1
        serialise_ns = job.serialisation_ns(job.replicas)
        every = frequency.nearest_period(self.persist_every, job.storage_ns(), job.iteration_ns)
        persist = self.persist_every
        return StrategyCosts(
            iteration_ns=job.iteration_ns,
            memory_every=self.every,
            memory_stall_ns=stall_ns,
            memory_transfer_ns=job.iteration_ns * max(1, min(needed, within)),
            storage_every=every if persist else 0,
            storage_transfer_ns=job.storage_ns() if persist else 0,
            serialise_ns=serialise_ns if self.serialise is None else self.serialise,
            retrieve_own_ns=job.gpu_copy_ns(),
            retrieve_peer_ns=job.network_ns(),
            retrieve_storage_ns=job.storage_ns() + job.serialisation_ns(),
            replicate_ns=traffic_ns,
            warm_up_ns=job.warm_up_ns,
            **self._in_place(job),
        )

    def _in_place(self, job: Job) -> dict[str, int]:
        """Return the figures of recoveries in place; none where all trainers are restarted."""
        if not self.in_place:
            return {}
        spare_ns = job.warm_up_ns * SPARE_PERCENT // 100
        alone_ns = job.warm_up_ns * ALONE_PERCENT // 100
        if self.warm_up_alone is not None:
            alone_ns = self.warm_up_alone
        return {
            "in_place": 1,
            "warm_up_in_place_ns": (
                spare_ns if self.warm_up_in_place is None else self.warm_up_in_place
            ),
            "warm_up_alone_ns": alone_ns,
            "warm_spares": int(self.warm_spares),
            "spare_build_ns": alone_ns,
        }


class JustInTime(StorageStrategy):
    """Nothing in the steady state; after a failure healthy replicas save what the lost one held.

    After Just-In-Time Checkpointing (EuroSys '24). It needs every shard on m machines by data
    parallelism (`replicas`); the state lives in the trainers, so a crashed process loses its
    own. All ranks then read the saved state back from storage.
    """

    kind: Literal["jit"] = "jit"
    persist_every: Nanoseconds = _PERSIST_EVERY_NS
    """Period of ordinary checkpoints to storage, for when no replica is left; 0: none."""

    def costs(self, job: Job) -> StrategyCosts:
        """At most the iteration in flight is lost while a replica of every shard lives."""
        every = frequency.nearest_period(self.persist_every, job.storage_ns(), job.iteration_ns)
        return self.asynchronous(job, every if self.persist_every else 0)._replace(
            memory_every=1,
            serialise_ns=self.save_ns(job) + job.storage_ns(),
            retrieve_own_ns=self.load_ns(job),
            memory_in_trainer=1,
        )


BUILT_IN: dict[str, type[Strategy]] = {
    "none": NoCheckpoint,
    "strawman": Strawman,
    "highfreq": HighFreq,
    "young": Young,
    "daly": Daly,
    "checkfreq": CheckFreq,
    "gemini": Gemini,
    "jit": JustInTime,
}
"""Castor's own."""

STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategies",
    BUILT_IN,
    lambda found: isinstance(found, type) and issubclass(found, Strategy),
    "subclass of castor_sim.strategies.Strategy",
)
"""The strategies that an experiment names by `kind`."""

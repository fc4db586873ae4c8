"""The profile of a measured iteration, as `castor calibrate` writes it; docs/iteration.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from castor_configs.load import load_toml
from castor_configs.quantities import BitsPerSecond, Bytes, Nanoseconds
from castor_configs.schema import ConfigModel, Count, Name
from castor_policy.interleaving import Link
from castor_sim.iteration.tasks import Kind, Lane, Task

FORMAT = "castor-iteration-profile-1"


class MeasuredHop(ConfigModel):
    """One hop's cost f(s) = alpha + s/B, of one GPU while all GPUs of its machine use it."""

    alpha: Nanoseconds = 0
    bandwidth: Annotated[BitsPerSecond, Field(gt=0)]

    def link(self) -> Link:
        """Return the hop as the policy takes it."""
        return Link(self.alpha, self.bandwidth)


class MeasuredProfile(ConfigModel):
    """An iteration without checkpoints as it was measured: traffic and idle time by turns."""

    format: Literal["castor-iteration-profile-1"]
    """FORMAT; another number, another meaning."""
    name: Name
    source: str = ""
    """Which run it was measured in."""
    shard: Annotated[Bytes, Field(gt=0)]
    """Checkpointed state of one GPU."""
    gpus: Count = 1
    """GPUs of a machine, which share its network card."""
    replicas: Count | None = None
    """m of the measured run; by default the experiment's."""
    network: MeasuredHop
    """From GPU to GPU of another machine."""
    copy_to_cpu: MeasuredHop = Field(alias="copy")
    """From GPU to CPU memory."""
    busy: list[Nanoseconds] = Field(min_length=1)
    """Training traffic, the first from the start of the iteration; 0: it starts idle."""
    idle: list[Nanoseconds] = Field(min_length=1)
    """Idle time behind each; the last one ends when the update starts."""
    update: Nanoseconds = 0
    """The update, without traffic."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Standard deviation of an idle span over its mean."""
    free_gpu_memory: Bytes | None = None
    """GPU memory that training leaves; by default the experiment's assumption."""

    @model_validator(mode="after")
    def _by_turns(self) -> MeasuredProfile:
        if len(self.busy) != len(self.idle):
            raise ValueError(
                f"expected as many entries of idle as of busy, not {len(self.idle)} and "
                f"{len(self.busy)}"
            )
        if not any(self.busy) and not any(self.idle):
            raise ValueError("expected an iteration that takes time: busy and idle are all 0")
        return self

    def tasks(self) -> tuple[Task, ...]:
        """Return the iteration as operations: each traffic waits for the time behind the last.

        What delays one thus delays all that follow: a measured timeline does not tell which
        computation could have gone on meanwhile.
        """
        tasks: list[Task] = []
        for number, (busy_ns, idle_ns) in enumerate(zip(self.busy, self.idle, strict=True)):
            if busy_ns:
                _append(tasks, f"traffic {number}", Kind.GATHER, Lane.NETWORK, busy_ns)
            if idle_ns:
                _append(tasks, f"computation {number}", Kind.COMPUTE, Lane.GPU, idle_ns)
        _append(tasks, "update", Kind.UPDATE, Lane.GPU, self.update)
        return tuple(tasks)


def load_profile(path: str | Path) -> MeasuredProfile:
    """Load a profile.

    Raises:
        InputError: the file cannot be read, or something in it is wrong.
    """
    return load_toml(path, MeasuredProfile)


def _append(tasks: list[Task], name: str, kind: Kind, lane: Lane, duration_ns: int) -> None:
    after = (len(tasks) - 1,) if tasks else ()
    tasks.append(Task(name, kind, lane, duration_ns, after))

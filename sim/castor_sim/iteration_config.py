"""The `[iteration]` table of an experiment: how an iteration is laid out and checkpointed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from castor_configs.quantities import BitsPerSecond, Bytes, Nanoseconds
from castor_configs.schema import ConfigModel, Count, CountOrZero, Flag
from castor_policy import defaults

Parallelism = Literal["zero3", "hybrid", "data", "pipeline"]


class IterationConfig(ConfigModel):
    """What `castor iterate` simulates; docs/iteration.md says what each does."""

    parallelism: Parallelism = "zero3"
    """How the job is spread; see castor_sim.iteration.workload and .pipeline."""
    prefetch: CountOrZero = 1
    """Blocks whose parameters may be gathered ahead of the one that computes."""
    recompute: Flag = True
    """Whether activations are computed again in the backward pass."""
    micro_batches: Annotated[Count, Field(le=10_000)] = 8
    """Micro-batches of an iteration; pipeline parallelism only."""
    buffer: Annotated[Bytes, Field(gt=0)] = defaults.GEMINI_BUFFER_BYTES
    """R: GPU memory reserved for received chunks (Gemini sec. 7.4: 128 MB)."""
    sub_buffers: Count = defaults.SUB_BUFFERS
    """p: sub-buffers of R/p (Gemini sec. 7.4: 4 x 32 MB)."""
    mu: Annotated[float, Field(gt=0, le=1)] = defaults.GEMINI_MU
    """Share of an idle span that is used; the paper gives none, its artifact uses 0.8."""
    shortest_span: Nanoseconds = 0
    """Idle spans shorter than this are left alone."""
    free_gpu_memory: Bytes = 512 * 10**6
    """GPU memory that training leaves. An assumption for the largest models that fit: the paper's
    runs had room for 128 MB, and not for the partitions of naive interleaving."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Standard deviation of a computation's time over its mean."""
    profiled: Annotated[Count, Field(le=1000)] = defaults.GEMINI_PROFILED_ITERATIONS
    """Iterations whose idle spans are averaged, where there is jitter (Gemini sec. 5: 20)."""
    measured: Annotated[Count, Field(le=1000)] = 10
    """Iterations that each scheme is run for, where there is jitter."""
    storage_traffic: BitsPerSecond = 0
    """What one machine sends to storage meanwhile, over the same network card."""

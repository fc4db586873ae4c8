"""A model: its shape, its size, and how long an iteration of it takes on which cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from castor_configs.find import find_config
from castor_configs.load import load_toml
from castor_configs.quantities import Nanoseconds
from castor_configs.schema import ConfigModel, Count, Name

Family: TypeAlias = Literal["gpt2", "roberta", "bert", "opt", "llama"]
TimeByCluster: TypeAlias = dict[Name, Annotated[Nanoseconds, Field(gt=0)]]


class Model(ConfigModel):
    """A transformer that is trained, and its measured times by the name of the cluster."""

    name: Name
    """Name of the model."""
    family: Family
    """Architecture, which decides what is counted as a parameter."""
    hidden: Count
    """Width of the residual stream."""
    intermediate: Count
    """Width of the feed-forward layer."""
    layers: Count
    """Transformer layers."""
    heads: Count
    """Attention heads."""
    key_value_heads: Count | None = None
    """Heads of keys and values, if fewer than `heads` (grouped-query attention)."""
    vocab: Count
    """Tokens in the vocabulary."""
    sequence_length: Count
    """Tokens in one sequence."""
    micro_batch: Count
    """Sequences that one data-parallel rank takes at a time."""
    stated_parameters: Count | None = Field(default=None, alias="parameters")
    """Number of parameters, if it is to be another than the shape gives."""
    bytes_per_parameter: Count = 12
    """Checkpointed bytes a parameter: 12 are an fp32 weight and both of Adam's moments."""
    iteration_time: TimeByCluster = Field(default_factory=dict)
    """Time of one iteration without checkpoints, by cluster, in nanoseconds."""
    idle_time: TimeByCluster = Field(default_factory=dict)
    """Time in one iteration in which the network is idle, by cluster, in nanoseconds."""
    checkpoint_time: TimeByCluster = Field(default_factory=dict)
    """Published time of one checkpoint to peers' CPU memory, by cluster, in nanoseconds."""
    source: str = ""
    """Where the figures come from."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.hidden % self.heads:
            raise ValueError(
                f"expected hidden ({self.hidden}) to be a multiple of heads ({self.heads})"
            )
        if self.heads % (self.key_value_heads or self.heads):
            raise ValueError(
                f"expected heads ({self.heads}) to be a multiple of "
                f"key_value_heads ({self.key_value_heads})"
            )
        return self

    @property
    def parameters(self) -> int:
        """Number of parameters: as stated, else what the shape gives."""
        return self.stated_parameters or self.shape_parameters

    @property
    def shape_parameters(self) -> int:
        """Number of parameters that the shape gives, biases, norms and embeddings included."""
        return _shape_parameters(self)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one whole checkpoint: 12 B a parameter in mixed-precision Adam (sec. 2.2)."""
        return self.parameters * self.bytes_per_parameter

    def shard_bytes(self, machines: int) -> int:
        """Return the size of one machine's shard of a checkpoint, rounded up (ZeRO-3)."""
        return -(-self.checkpoint_bytes // machines)

    def iteration_time_ns(self, cluster: str) -> int:
        """Return the time of one iteration on the named cluster, in nanoseconds.

        Raises:
            ValueError: it is not given for that cluster.
        """
        if cluster not in self.iteration_time:
            known = ", ".join(sorted(self.iteration_time)) or "none"
            raise ValueError(
                f"model {self.name} gives no iteration_time for cluster {cluster} "
                f"(given: {known}): set iteration_time.{cluster}"
            )
        return self.iteration_time[cluster]


def _shape_parameters(model: Model) -> int:
    """Count weights, biases, norms and embeddings; the output layer is tied but for Llama's."""
    hidden, vocab = model.hidden, model.vocab
    if model.family == "llama":
        key_value = 2 * hidden * hidden * (model.key_value_heads or model.heads) // model.heads
        layer = 2 * hidden**2 + key_value + 3 * hidden * model.intermediate + 2 * hidden
        return model.layers * layer + 2 * vocab * hidden + hidden
    feed_forward = 2 * hidden * model.intermediate + model.intermediate + hidden
    layer = 4 * (hidden**2 + hidden) + feed_forward + 4 * hidden
    # OPT and RoBERTa keep two more rows of positions, for padding.
    positions = model.sequence_length + (2 if model.family in ("opt", "roberta") else 0)
    around = {
        "gpt2": 2 * hidden,
        "opt": 2 * hidden,
        # Token types, a norm, and the head of masked language modelling.
        "roberta": hidden + 2 * hidden + hidden**2 + 3 * hidden + vocab,
        # The same with two token types, a pooler, and the head of next-sentence prediction.
        "bert": 4 * hidden + 2 * (hidden**2 + hidden) + 2 * hidden + vocab + 2 * hidden + 2,
    }[model.family]
    return model.layers * layer + (vocab + positions) * hidden + around


def load_model(
    name_or_path: str | Path, *, relative_to: Path | None = None, overrides: Sequence[str] = ()
) -> Model:
    """Return the model of this name or in this file; see `find_config` and `load_toml`.

    Raises:
        InputError: there is none, or its file is faulty.
    """
    path = find_config("models", name_or_path, relative_to=relative_to)
    return load_toml(path, Model, overrides=overrides)

"""GPT-2, BERT and RoBERTa in any size, as `castor_configs.model.Model` describes them.

Written for training under ZeRO-3: small modules whose parameters are used in their own forward, but
for the output layer, which shares the word embedding. `forward` returns the loss.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from castor_configs.model import Model
from castor_lab.programs.paced_layer import PacedLayer

IGNORED = -100
"""Label of a token that is not predicted."""


def build_language_model(
    shape: Model, *, dropout: float = 0.1, paced_layer_s: float | None = None
) -> nn.Module:
    """Return the model of that shape with freshly drawn weights (torch's generator).

    Its input is a batch of tokens (GPT-2), or `MaskedBatch` as a tuple (BERT and RoBERTa).

    Args:
        shape: of the model.
        dropout: share of units that are dropped out.
        paced_layer_s: wait so long instead of computing a layer (see `PacedLayer`); None: compute.

    Raises:
        ValueError: the family is another, or the wait is no time.
    """
    model: CausalLanguageModel | MaskedLanguageModel
    if shape.family == "gpt2":
        model = CausalLanguageModel(shape, dropout)
    elif shape.family in ("bert", "roberta"):
        model = MaskedLanguageModel(shape, dropout)
    else:
        raise ValueError(
            f"family {shape.family!r} cannot be trained here: choose a gpt2, bert or roberta model"
        )
    model.apply(_draw_weights)
    if paced_layer_s is not None:
        model.layers = nn.ModuleList(PacedLayer(shape, paced_layer_s) for _ in model.layers)
    return model


class CausalLanguageModel(nn.Module):
    """GPT-2: norms before each layer, every token predicted from those before it."""

    def __init__(self, shape: Model, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.positions = nn.Embedding(shape.sequence_length, shape.hidden)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(shape, dropout, causal=True, norm_first=True) for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(shape.hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of predicting tokens[:, 1:].

        Args:
            tokens: (batch, sequence) of token numbers.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.dropout(self.tokens(tokens) + self.positions(places))
        for layer in self.layers:
            hidden = layer(hidden)
        scores = functional.linear(self.norm(hidden)[:, :-1], self.tokens.weight)
        return functional.cross_entropy(scores.flatten(0, 1).float(), tokens[:, 1:].flatten())


class MaskedLanguageModel(nn.Module):
    """BERT and RoBERTa: norms after each layer, masked tokens predicted; BERT tells pairs too."""

    def __init__(self, shape: Model, dropout: float) -> None:
        super().__init__()
        paired = shape.family == "bert"
        # RoBERTa's positions begin after two rows that padding has.
        self._first_position = 0 if paired else 2
        self.tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.positions = nn.Embedding(shape.sequence_length + self._first_position, shape.hidden)
        self.segments = nn.Embedding(2 if paired else 1, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(shape, dropout, causal=False, norm_first=False) for _ in range(shape.layers)
        )
        self.transform = nn.Linear(shape.hidden, shape.hidden)
        self.transform_norm = nn.LayerNorm(shape.hidden)
        self.output_bias = nn.Parameter(torch.zeros(shape.vocab))
        self.pooler = nn.Linear(shape.hidden, shape.hidden) if paired else None
        self.follows = nn.Linear(shape.hidden, 2) if paired else None

    def forward(
        self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return the mean loss of the masked tokens, and of the pairs with BERT.

        Args:
            batch: tokens, labels (`IGNORED` where not masked), segments (0 or 1), all (batch,
                sequence), and whether the second segment follows the first, (batch,).
        """
        tokens, labels, segments, follows = batch
        places = torch.arange(tokens.shape[1], device=tokens.device) + self._first_position
        if self.follows is None:
            segments = torch.zeros_like(segments)
        embedded = self.tokens(tokens) + self.positions(places) + self.segments(segments)
        hidden = self.dropout(self.norm(embedded))
        for layer in self.layers:
            hidden = layer(hidden)
        transformed = self.transform_norm(functional.gelu(self.transform(hidden)))
        scores = functional.linear(transformed, self.tokens.weight, self.output_bias)
        loss = functional.cross_entropy(
            scores.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED
        )
        if self.follows is not None and self.pooler is not None:
            pair = self.follows(torch.tanh(self.pooler(hidden[:, 0])))
            loss = loss + functional.cross_entropy(pair.float(), follows)
        return loss


class Layer(nn.Module):
    """One transformer layer: self-attention and feed-forward, each with a residual and a norm."""

    def __init__(self, shape: Model, dropout: float, *, causal: bool, norm_first: bool) -> None:
        super().__init__()
        self._heads = shape.heads
        self._causal = causal
        self._norm_first = norm_first
        self._attention_dropout = dropout
        self.attention_norm = nn.LayerNorm(shape.hidden)
        self.query_key_value = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.attention_output = nn.Linear(shape.hidden, shape.hidden)
        self.feed_forward_norm = nn.LayerNorm(shape.hidden)
        self.feed_forward = nn.Linear(shape.hidden, shape.intermediate)
        self.feed_forward_output = nn.Linear(shape.intermediate, shape.hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for (batch, sequence, hidden)."""
        if self._norm_first:
            hidden = hidden + self._attend(self.attention_norm(hidden))
            return hidden + self._feed(self.feed_forward_norm(hidden))
        hidden = self.attention_norm(hidden + self._attend(hidden))
        output: torch.Tensor = self.feed_forward_norm(hidden + self._feed(hidden))
        return output

    def _attend(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, sequence, width = hidden.shape
        mixed = self.query_key_value(hidden).view(batch, sequence, 3, self._heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self._attention_dropout if self.training else 0.0,
            is_causal=self._causal,
        )
        joined = attended.transpose(1, 2).reshape(batch, sequence, width)
        output: torch.Tensor = self.dropout(self.attention_output(joined))
        return output

    def _feed(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = functional.gelu(self.feed_forward(hidden))
        output: torch.Tensor = self.dropout(self.feed_forward_output(wide))
        return output


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)

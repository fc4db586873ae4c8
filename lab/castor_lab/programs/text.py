"""Text as tokens, and a sampler whose place in the text is part of the checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from castor_lab.programs.language_model import IGNORED

MASK = 256
"""The token that hides another; bytes are tokens 0 to 255."""
_MASKED_SHARE = 0.15  # as BERT's authors chose it


def read_text(path: Path) -> torch.Tensor:
    """Return the bytes of a file as tokens.

    Raises:
        ValueError: it is empty.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path} is empty: give a file with text")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def read_wikipedia(articles: int, *, edition: str = "20231101.simple") -> torch.Tensor:
    """Return the bytes of the first articles of Wikipedia, through Hugging Face `datasets`.

    Raises:
        ValueError: `datasets` is not installed, or the data cannot be had.
    """
    try:
        load_dataset = importlib.import_module("datasets").load_dataset
    except ImportError as error:
        raise ValueError(
            "Wikipedia needs the package `datasets`: pip install datasets, or use --text FILE"
        ) from error
    try:
        rows = load_dataset("wikimedia/wikipedia", edition, split="train", streaming=True)
        text = "\n\n".join(row["text"] for row in rows.take(articles))
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"Wikipedia cannot be loaded ({error}); use --text FILE") from error
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


class TextSampler:
    """Draws windows of a text in an order that all ranks share, each its own part of it.

    Every epoch has its own order, drawn from `seed` and the epoch's number alone, so that the state
    is two numbers.

    Args:
        tokens: the text, one dimension.
        sequence: tokens in a window.
        batch: windows in a batch of this rank.
        rank: of `world`.
        world: ranks that share the text.
        seed: of the order.

    Raises:
        ValueError: the text has not one batch for every rank.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        *,
        sequence: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        self._windows = tokens[: len(tokens) // sequence * sequence].view(-1, sequence)
        if len(self._windows) < batch * world:
            raise ValueError(
                f"the text has {len(self._windows)} windows of {sequence} tokens, and {world} "
                f"ranks take {batch} each: give a longer text or a smaller batch"
            )
        self._batch = batch
        self._rank = rank
        self._world = world
        self._seed = seed
        self._epoch = 0
        self._drawn = 0
        self._order = self._shuffled()

    def next_batch(self) -> torch.Tensor:
        """Return the next windows of this rank, (batch, sequence), int64."""
        taken = self._batch * self._world
        if self._drawn + taken > len(self._order):
            self._epoch, self._drawn = self._epoch + 1, 0
            self._order = self._shuffled()
        first = self._drawn + self._rank * self._batch
        self._drawn += taken
        return self._windows[self._order[first : first + self._batch]].long()

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the text."""
        return {"seed": self._seed, "epoch": self._epoch, "drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state_dict` returned."""
        self._seed, self._epoch, self._drawn = state["seed"], state["epoch"], state["drawn"]
        self._order = self._shuffled()

    def _shuffled(self) -> torch.Tensor:
        # A large odd factor, so that neighbouring seeds do not share their epochs.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return torch.randperm(len(self._windows), generator=generator)


def masked_batch(
    tokens: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what BERT and RoBERTa learn from: tokens, labels, segments, whether segments follow.

    15 % of the tokens are hidden. Every second row, on average, gets the second half of the row
    after it. Draws from torch's generator, which is part of the checkpoint.
    """
    half = tokens.shape[1] // 2
    follows = torch.randint(0, 2, (len(tokens),))
    moved = torch.cat([tokens[:, :half], tokens.roll(-1, 0)[:, half:]], dim=1)
    mixed = torch.where(follows.bool()[:, None], tokens, moved)
    hidden = torch.rand(mixed.shape) < _MASKED_SHARE
    hidden[:, 0] = True  # a batch without a hidden token has no loss
    labels = torch.where(hidden, mixed, IGNORED)
    segments = torch.zeros_like(mixed)
    segments[:, half:] = 1
    return torch.where(hidden, MASK, mixed), labels, segments, follows

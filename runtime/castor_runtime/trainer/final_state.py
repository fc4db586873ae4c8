"""The state that training came to, written into memory at once where no checkpoint has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from castor_runtime.arena import Writing
from castor_runtime.state.meta import encode
from castor_runtime.state.sections import Section, copy_section
from castor_runtime.trainer.exchange import Part


def write_state(
    writing: Writing,
    sections: Sequence[Section],
    live: Callable[[], Sequence[torch.Tensor | None]],
    meta: Callable[[], dict[str, Any]],
) -> None:
    """Fill a buffer with live state and commit it; whatever is raised, the buffer is given up.

    Args:
        writing: the buffer, on which there is room for `meta`, or somebody who adds it.
        sections: of the state.
        live: returns the state, by section.
        meta: returns what belongs to it.
    """
    part = Part(writing)
    try:
        for section, tensor in zip(sections, live(), strict=True):
            copy_section(section, part.data, tensor)
        part.digest_up_to(part.data.numel())
        encoded = encode(meta())
        part.writing.make_room(len(encoded))
    except BaseException:
        part.writing.abandon()
        raise
    part.writing.commit(encoded, part.digests)

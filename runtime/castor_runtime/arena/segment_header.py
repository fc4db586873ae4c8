"""Whose a segment is, read without mapping it."""

from __future__ import annotations

from pathlib import Path

from castor_runtime.arena.errors import ForeignCheckpointError
from castor_runtime.arena.layout import (
    HEADER_BYTES,
    LAYOUT_VERSION,
    PartLayout,
    SegmentOwner,
    read_version,
    unpack_fixed,
)
from castor_runtime.arena.segments import read_start


def read_header(path: Path) -> tuple[SegmentOwner, PartLayout]:
    """Return whose a segment is and its sizes.

    Raises:
        ForeignCheckpointError: it is no segment, is of another layout version, or is torn.
        OSError: it cannot be read.
    """
    header = read_start(path, HEADER_BYTES)
    version = read_version(header)
    if version is None:
        raise ForeignCheckpointError(f"{path.name} is no checkpoint memory of Castor; remove it")
    if version != LAYOUT_VERSION:
        raise ForeignCheckpointError(
            f"{path.name} is of layout version {version}, this Castor writes {LAYOUT_VERSION}; "
            "finish the job with the version that began it, or remove the segment"
        )
    found = unpack_fixed(header)
    if found is None:
        raise ForeignCheckpointError(f"the header of {path.name} is damaged; remove it")
    return found

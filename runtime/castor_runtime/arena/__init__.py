"""Checkpoint memory: POSIX shared memory that the agent owns, so a dead trainer loses nothing.

Two buffers a held part, a fixed layout (`castor_runtime.arena.layout`), a digest a chunk, the
header written last. Nothing is serialised at recovery, which costs Gemini 162 s (Fig. 14).
"""

from castor_runtime.arena.arena import Arena
from castor_runtime.arena.budget import available_bytes, check_budget
from castor_runtime.arena.buffers import Snapshot, Writing
from castor_runtime.arena.control import ControlBlock, RankControl, TrainerPhase
from castor_runtime.arena.digests import chunk_digest, chunk_digests
from castor_runtime.arena.errors import (
    ArenaError,
    DamagedPartError,
    ForeignCheckpointError,
    IterationMissingError,
    WritingLostError,
)
from castor_runtime.arena.job_lock import JobLock
from castor_runtime.arena.layout import LAYOUT_VERSION, PartLayout, SegmentOwner
from castor_runtime.arena.numa import NearGpus, Topology
from castor_runtime.arena.removal import remove_dead
from castor_runtime.arena.replica import Replica
from castor_runtime.arena.segments import SHARED_MEMORY, control_name, segment_name

__all__ = [
    "LAYOUT_VERSION",
    "SHARED_MEMORY",
    "Arena",
    "ArenaError",
    "ControlBlock",
    "DamagedPartError",
    "ForeignCheckpointError",
    "IterationMissingError",
    "JobLock",
    "NearGpus",
    "PartLayout",
    "RankControl",
    "Replica",
    "SegmentOwner",
    "Snapshot",
    "Topology",
    "TrainerPhase",
    "Writing",
    "WritingLostError",
    "available_bytes",
    "check_budget",
    "chunk_digest",
    "chunk_digests",
    "control_name",
    "remove_dead",
    "segment_name",
]

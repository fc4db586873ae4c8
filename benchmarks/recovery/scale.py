"""The paper's proportions on this machine: how fast the storage, how long the iteration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from systems import START_LIMIT_S, castor

from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.training import CheckpointCompleted

# Gemini, sec. 7.1: 16 machines of 400 Gbps each beside storage of 20 Gbps for all of them.
STORAGE_PER_NETWORK = 20 / 16 / 400
PAPER_ITERATION_S = 62.0
PAPER_CHECKPOINT_S = 480.0
STRAWMAN_INTERVAL_S = 3 * 3600.0

LAYERS = 2
VOCABULARY, SEQUENCE = 320, 32
BYTES_PER_PARAMETER = 12


@dataclass(frozen=True, slots=True)
class Scale:
    """What all systems of the comparison run with.

    Attributes:
        network_bytes_per_s: fastest checkpoint between ranks, each way, all ranks at once.
        storage_bytes_per_s: a node's share of the storage.
        hidden: width of the model.
        state_bytes: of a rank.
        iteration_s: what an iteration should take: as long beside the storage as the paper's.
        pace_s: sleep in each forward that makes it so.
    """

    network_bytes_per_s: float
    storage_bytes_per_s: float
    hidden: int
    state_bytes: float
    iteration_s: float
    pace_s: float

    @property
    def job(self) -> list[str]:
        """The job's options."""
        return ["--hidden", str(self.hidden), "--pace-s", f"{self.pace_s:.4f}"]

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return asdict(self)


def scaled(network_bytes_per_s: float, ranks: int, iteration_s: float, work_s: float) -> Scale:
    """Choose the state so that its way to the storage is to an iteration as in the paper.

    Args:
        network_bytes_per_s: measured.
        ranks: one a node.
        iteration_s: wanted.
        work_s: what an iteration takes without a pause.
    """
    storage = network_bytes_per_s * STORAGE_PER_NETWORK
    wanted_bytes = iteration_s * PAPER_CHECKPOINT_S / PAPER_ITERATION_S * storage
    hidden = hidden_for(wanted_bytes, ranks)
    state_bytes = parameters(hidden) * BYTES_PER_PARAMETER / ranks
    iteration_s = state_bytes / storage * PAPER_ITERATION_S / PAPER_CHECKPOINT_S
    return Scale(
        network_bytes_per_s,
        storage,
        hidden,
        state_bytes,
        iteration_s,
        max(0.0, iteration_s - work_s),
    )


def parameters(hidden: int, layers: int = LAYERS) -> int:
    """Return how many parameters the job's model has."""
    layer = 12 * hidden * hidden + 13 * hidden
    return layers * layer + (VOCABULARY + SEQUENCE + 2) * hidden


def hidden_for(state_bytes: float, ranks: int, layers: int = LAYERS) -> int:
    """Return the width, a multiple of 8, whose state a rank comes nearest to `state_bytes`."""
    wanted = state_bytes * ranks / BYTES_PER_PARAMETER
    return min(range(16, 4096, 8), key=lambda hidden: abs(parameters(hidden, layers) - wanted))


def measure_network(out: Path, ranks: int, state_bytes: float, iterations: int) -> float:
    """Return the bytes a second at which each rank's checkpoint reaches its peer's memory.

    The fastest of several: nearest to what the link can do, and kindest to the storage. Iterations
    are paced, so that computing does not slow the transfer.
    """
    job = ["--hidden", str(hidden_for(state_bytes, ranks)), "--pace-s", "0.5"]
    with castor(out, ranks, job) as run:
        run.wait(lambda: run.ended(iterations), f"iteration {iterations}", START_LIMIT_S)
        completed = checkpoints(run.entries())
    return max(sent / seconds for seconds, sent in completed)


def checkpoints(entries: list[Entry[Event]]) -> list[tuple[float, int]]:
    """Return (seconds until complete on all ranks, bytes sent by a rank) of each checkpoint.

    The first of each generation is left out: it waits for redundancy and for memory to be touched.
    """
    by_iteration: dict[tuple[int, int], list[CheckpointCompleted]] = {}
    for entry in of_kind(entries, CheckpointCompleted):
        key = (entry.event.generation, entry.event.iteration)
        by_iteration.setdefault(key, []).append(entry.event)
    found: list[tuple[float, int]] = []
    seen: set[int] = set()
    for (generation, _), group in by_iteration.items():
        if generation not in seen:
            seen.add(generation)
            continue
        seconds = max(event.seconds or 0.0 for event in group)
        found.append((seconds, max(event.sent_bytes or 0 for event in group)))
    return found

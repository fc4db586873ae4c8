"""The training loop that every peer is measured in: the same state, updates, order and log.

A rank holds 64 float32 tensors. An iteration adds 1 to each of them, and then the peer saves:

- *blocked*: from the call until the trainer may update the state again, and would;
- *usable*: from the call until a copy that survives this rank is complete, on a peer where the
  system has peers. The trainer waits for it here, so that iterations do not disturb each other.

After the timed iterations the state is spoilt and restored in place, fetched from a peer where the
system can, and checked. From then on iterations follow each other until the rank is killed from
outside; a rank that is restarted, or goes on in place, checks its state and trains on for a while.
Everything is appended to rank-R.jsonl as it happens; times are CLOCK_REALTIME.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

TENSORS = 64
RESTORES = 3
PAUSE_S = 0.2
AFTER_RESTART = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What the orchestrator asks of a rank.

    Attributes:
        state_bytes: of one rank.
        iterations: timed ones and those before, that are not counted.
        out: folder of the logs.
        tier: folder in memory (tmpfs) for systems that write files.
        machine_loss: there is one more recovery after the first (Castor).
    """

    state_bytes: int
    iterations: int
    out: Path
    tier: Path
    machine_loss: bool = False


class Peer(Protocol):
    """One checkpoint system around one rank's state."""

    def recover(self) -> int:
        """Restore after a start; return how many iterations are done, 0 without a checkpoint."""
        ...

    def attempt(self) -> AbstractContextManager[object]:
        """Return what an iteration, and the completion of its copy, are tried within."""
        ...

    def went_back(self) -> int | None:
        """Return how many are done if a failure has set that back, without a restart; else None."""
        ...

    def save(self, iteration: int) -> None:
        """Save; return when the state may change."""
        ...

    def wait_usable(self, iteration: int) -> None:
        """Return when a copy that outlives this rank is complete."""
        ...

    def restore(self) -> int | None:
        """Copy the newest checkpoint into the live tensors; None: measured another way."""
        ...

    def fetch(self) -> float | None:
        """Get this rank's part from a peer's memory; return seconds; None: cannot."""
        ...

    def close(self) -> None:
        """End in good order."""
        ...


class Restarted:
    """Of a peer whose ranks are all restarted after a failure."""

    def attempt(self) -> AbstractContextManager[object]:
        """See `Peer`."""
        return nullcontext()

    def went_back(self) -> int | None:
        """See `Peer`."""
        return None


class Log:
    """Appends one JSON object a line."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"rank-{rank}.jsonl").open("a", buffering=1)

    def write(self, kind: str, **fields: Any) -> None:
        """Write an event of now."""
        line = {"kind": kind, "time_ns": time.time_ns(), "pid": os.getpid(), **fields}
        self._file.write(json.dumps(line) + "\n")


def options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state-bytes", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tier", type=Path, required=True)
    parser.add_argument("--machine-loss", action="store_true")
    return Options(**vars(parser.parse_args()))


def plain_tensors(state_bytes: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a rank."""
    each = state_bytes // TENSORS // 4
    return {f"t{i:02d}": torch.empty(each) for i in range(TENSORS)}


def fill(state: dict[str, torch.Tensor], rank: int, iteration: int) -> None:
    """Set the state to what it is after that iteration."""
    for i, name in enumerate(sorted(state)):
        state[name].fill_(1000 * rank + i + iteration)


def is_right(state: dict[str, torch.Tensor], rank: int, iteration: int) -> bool:
    """Tell whether every tensor is that of the iteration, at a sample of places."""
    return all(
        bool(
            (state[name][:: max(1, state[name].numel() // 97)] == 1000 * rank + i + iteration).all()
        )
        for i, name in enumerate(sorted(state))
    )


def train(
    make_peer: Callable[[dict[str, torch.Tensor], Options], Peer],
    make_state: Callable[[int], dict[str, torch.Tensor]] = plain_tensors,
) -> None:
    """Run the loop on this rank, as the module says."""
    asked = options()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    log = Log(asked.out, rank)
    log.write("started")
    state = make_state(asked.state_bytes)
    fill(state, rank, 0)
    log.write("state_made")
    loop = _Loop(asked, rank, log, state)
    loop.train(make_peer(state, asked))


class _Loop:
    """The iterations of one process."""

    def __init__(self, asked: Options, rank: int, log: Log, state: dict[str, torch.Tensor]) -> None:
        self._asked, self._rank, self._log, self._state = asked, rank, log, state
        self._done = self._last = self._lives = 0

    def train(self, peer: Peer) -> None:
        """Train until the end, through failures that do not end this process."""
        self._begin(peer.recover())
        while self._done < self._last:
            with peer.attempt():
                self._go_back(peer)  # told of a failure between two iterations
                self._done += 1
                _iterate(peer, self._log, self._state, self._done)
            self._go_back(peer)
            if self._lives == 1 and self._done == self._asked.iterations:
                _restores(peer, self._log, self._state, self._rank, self._done)
                self._log.write("measured")
            time.sleep(PAUSE_S)
        peer.close()
        self._log.write("finished", iteration=self._done)

    def _go_back(self, peer: Peer) -> None:
        done = peer.went_back()
        if done is not None:
            self._begin(done)

    def _begin(self, done: int) -> None:
        """Begin this rank's next life, in whatever process the one before was."""
        self._done = done
        right = is_right(self._state, self._rank, done)
        self._log.write("recovered", iteration=done, right=right)
        lines = (self._asked.out / f"rank-{self._rank}.jsonl").read_text().splitlines()
        self._lives = sum('"recovered"' in line for line in lines)
        deaths = 2 if self._asked.machine_loss else 1
        # Until its last death the orchestrator has it killed; 500 only ends a run gone wrong.
        more = AFTER_RESTART if self._lives > deaths else self._asked.iterations + 500
        self._last = done + more


def _iterate(peer: Peer, log: Log, state: dict[str, torch.Tensor], iteration: int) -> None:
    dist.barrier()
    for tensor in state.values():
        tensor.add_(1)
    log.write("iteration_ended", iteration=iteration)
    began = time.monotonic()
    peer.save(iteration)
    blocked = time.monotonic()
    peer.wait_usable(iteration)
    usable = time.monotonic()
    log.write("saved", iteration=iteration, blocked_s=blocked - began, usable_s=usable - began)


def _restores(
    peer: Peer, log: Log, state: dict[str, torch.Tensor], rank: int, iteration: int
) -> None:
    for _ in range(RESTORES):
        for tensor in state.values():
            tensor.fill_(-1)
        dist.barrier()
        began = time.monotonic()
        restored = peer.restore()
        seconds = time.monotonic() - began
        if restored is None:
            fill(state, rank, iteration)
            break
        right = restored == iteration and is_right(state, rank, iteration)
        log.write("restored", seconds=seconds, right=right)
    for _ in range(RESTORES):
        dist.barrier()
        fetched = peer.fetch()
        if fetched is None:
            break
        log.write("fetched", seconds=fetched)

"""How fast processors send checkpoints: plain TCP, gloo and zero copy, beside memcpy.

    python benchmarks/send/measure.py [--megabytes 256] [--chunk-mib 16] [--rounds 4] [--out FILE]

Processes in a ring on this machine, each of which sends to the next one while it receives from the
one before, over loopback, as replicas travel. Bytes are moved by the processors alone, so what a
core does here is what it does beside a fast network card, but for the card's own work. README.md
says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from castor_runtime.trainer.device import post_gloo, wait_all
from castor_runtime.trainer.stripes import striped
from castor_runtime.trainer.tcp_streams import TcpStreams

_SO_ZEROCOPY = 60
_MSG_ZEROCOPY = 0x4000000
_SPIN_STEPS = 1_000
_IN_FLIGHT = 4
_SLEEP_S = 1e-4


def memcpy_gbps(size_bytes: int, seconds: float) -> float:
    """Return GB that a core copies in a second, of blocks that fit in no cache."""
    source = torch.ones(size_bytes, dtype=torch.uint8)
    target = torch.zeros_like(source)
    torch.set_num_threads(1)
    copied, began = 0, time.thread_time()
    while time.thread_time() - began < seconds:
        target.copy_(source)
        copied += size_bytes
    return copied / (time.thread_time() - began) / 1e9


def lock_wait_us(work: Callable[[], object], seconds: float) -> float:
    """Return how long a thread waits for Python's lock, which another one has that does `work`."""
    over = threading.Event()

    def train() -> None:
        while not over.is_set():
            work()

    training = threading.Thread(target=train)
    training.start()
    waits, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        time.sleep(_SLEEP_S)  # gives the lock up, and has to take it again
        waits += 1
    each_s = (time.monotonic() - began) / waits - _SLEEP_S
    over.set()
    training.join()
    return each_s * 1e6


class InPieces:
    """Pieces through what Castor sends with: its own streams, or groups of gloo's in stripes."""

    def __init__(self, rank: int, world: int, folder: Path, *, streams: int, groups: int) -> None:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
        )
        self._to, self._source = (rank + 1) % world, (rank - 1) % world
        made = [dist.new_group(backend="gloo") for _ in range(max(1, groups))]
        self._groups: list[Any] = made
        self._tag = 0
        self._streams = None
        if streams:
            self._streams = TcpStreams(
                self._groups[0],
                [self._to],
                [self._source],
                streams,
                address="127.0.0.1",
                timeout_s=60.0,
            )

    def exchange(self, outgoing: torch.Tensor, incoming: torch.Tensor, chunk: int) -> None:
        """Send all of it and receive as much, four pieces at a time."""
        under_way: list[list[Any]] = []
        for start in range(0, outgoing.numel(), chunk):
            if len(under_way) == _IN_FLIGHT:
                wait_all(under_way.pop(0))
            self._tag += 1
            send = outgoing[start : start + chunk]
            under_way.append(self._post(send, incoming[start : start + chunk]))
        for works in under_way:
            wait_all(works)

    def _post(self, send: torch.Tensor, receive: torch.Tensor) -> list[Any]:
        if self._streams is not None:
            return self._streams.post(self._tag, [(self._to, send)], [(self._source, receive)])
        count = len(self._groups)
        works: list[Any] = []
        parts = zip(striped(send, count), striped(receive, count), strict=True)
        for group, (sent, received) in zip(self._groups, parts, strict=False):
            works += post_gloo(group, self._tag, [(self._to, sent)], [(self._source, received)])
        return works


class ZeroCopy:
    """One connection whose sends are MSG_ZEROCOPY."""

    def __init__(self, rank: int, world: int, folder: Path) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        (folder / f"port-{rank}.tmp").write_text(str(listener.getsockname()[1]))
        (folder / f"port-{rank}.tmp").rename(folder / f"port-{rank}")
        there = folder / f"port-{(rank + 1) % world}"
        while not there.exists():
            time.sleep(0.001)
        self._outgoing = socket.create_connection(("127.0.0.1", int(there.read_text())))
        self._incoming = listener.accept()[0]
        self._outgoing.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)

    def exchange(self, outgoing: torch.Tensor, incoming: torch.Tensor, chunk: int) -> None:
        """Send all of it and receive as much."""
        sending = threading.Thread(target=self._send, args=(memoryview(outgoing.numpy()),))
        sending.start()
        data = memoryview(incoming.numpy())
        while data:
            got = self._incoming.recv_into(data, min(chunk, len(data)), socket.MSG_WAITALL)
            if got == 0:
                raise ConnectionError("the process before this one is gone")
            data = data[got:]
        sending.join()

    def _send(self, data: memoryview) -> None:
        calls = told = 0
        while data:
            try:
                data = data[self._outgoing.send(data[: 1 << 20], _MSG_ZEROCOPY) :]
                calls += 1
            except OSError:  # too many under way: hear of some first
                pass
            told += self._completions()
        while told < calls:
            told += self._completions()

    def _completions(self) -> int:
        """Return how many zero-copy sends the kernel has told to be over since the last time."""
        flags = socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
        try:
            _, ancillary, _, _ = self._outgoing.recvmsg(1, 512, flags)
        except BlockingIOError:
            time.sleep(0)
            return 0
        # struct sock_extended_err: the range of sends is in ee_info and ee_data.
        found = 0
        for _, _, data in ancillary:
            low, high = (int.from_bytes(data[at : at + 4], sys.byteorder) for at in (8, 12))
            found += high - low + 1
        return found


def _pieces(*, streams: int = 0, groups: int = 0) -> Callable[[int, int, Path], Any]:
    return partial(InPieces, streams=streams, groups=groups)


WAYS: dict[str, Callable[[int, int, Path], Any]] = {
    "TCP, 1 connection": _pieces(streams=1),
    "TCP, 2 connections": _pieces(streams=2),
    "TCP, 4 connections": _pieces(streams=4),
    "gloo, 1 group": _pieces(groups=1),
    "gloo, 2 groups": _pieces(groups=2),
    "gloo, 4 groups": _pieces(groups=4),
    "zero copy, 1 connection": ZeroCopy,
}


def one_rank(
    way: str, rank: int, world: int, folder: Path, given: argparse.Namespace, *, busy: bool
) -> dict[str, float]:
    """Exchange again and again for the given time; return bytes, seconds and processor time."""
    torch.set_num_threads(1)
    network = WAYS[way](rank, world, folder)
    size = given.megabytes << 20
    outgoing = torch.full((size,), rank + 1, dtype=torch.uint8)
    incoming = torch.zeros_like(outgoing)
    network.exchange(outgoing, incoming, given.chunk_mib << 20)  # connections wake up
    assert int(incoming[-1]) == (rank - 1) % world + 1, "the bytes are those of the rank before"
    over = threading.Event()
    spinner = threading.Thread(target=_spin, args=(over,), daemon=True)
    if busy:
        spinner.start()
    spent, began, rounds = time.process_time(), time.monotonic(), 0
    for _ in range(given.rounds):
        network.exchange(outgoing, incoming, given.chunk_mib << 20)
        rounds += 1
    found = {
        "bytes": float(rounds * size),
        "seconds": time.monotonic() - began,
        "processor_s": time.process_time() - spent,
    }
    over.set()
    return found


def _spin(over: threading.Event) -> None:
    """Hold Python's lock, as a training loop may."""
    while not over.is_set():
        sum(range(_SPIN_STEPS))


def _child(
    way: str,
    rank: int,
    world: int,
    folder: Path,
    given: argparse.Namespace,
    busy: bool,
) -> None:
    found = one_rank(way, rank, world, folder, given, busy=busy)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # groups may wait for each other when they are taken down


def measured(way: str, world: int, given: argparse.Namespace, *, busy: bool) -> dict[str, Any]:
    """Run one way between `world` processes; return its row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=_child, args=(way, rank, world, folder, given, busy))
            for rank in range(world)
        ]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join()
        if any(one.exitcode for one in ranks):
            return {"way": way, "processes": world, "python_busy": busy, "failed": True}
        rows = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    total = sum(row["bytes"] for row in rows)
    return {
        "way": way,
        "processes": world,
        "python_busy": busy,
        "gb_per_s": total / max(row["seconds"] for row in rows) / 1e9,
        "gb_per_core_s": None if busy else total / sum(row["processor_s"] for row in rows) / 1e9,
    }


def shown(rows: Sequence[dict[str, Any]], memcpy: float) -> str:
    """Return the table, as Markdown."""
    lines = [
        "| way | processes | GB/s, all | beside memcpy | GB sent and received a core-second "
        "| cores for 100 Gbit/s each way | Python busy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        busy = "yes" if row["python_busy"] else ""
        if row.get("failed"):
            lines.append(f"| {row['way']} | {row['processes']} | failed | | | | {busy} |")
            continue
        per_core = row["gb_per_core_s"]
        core, cores = (
            ("", "") if per_core is None else (f"{per_core:.2f}", f"{12.5 / per_core:.1f}")
        )
        lines.append(
            f"| {row['way']} | {row['processes']} | {row['gb_per_s']:.2f} "
            f"| {row['gb_per_s'] / memcpy:.2f} | {core} | {cores} | {busy} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=256, help="MiB that a rank sends a round")
    parser.add_argument("--chunk-mib", type=int, default=16, help="MiB of a piece")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--way", action="append", choices=list(WAYS), help="only this one")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    given = parser.parse_args()
    memcpy = memcpy_gbps(given.megabytes << 20, 1.0)
    print(f"memcpy, one thread: {memcpy:.2f} GB/s; {len(os.sched_getaffinity(0))} cores")
    small = torch.ones(64)
    waits_us = {
        "torch's operations": lock_wait_us(lambda: small.add_(1), 1.0),
        "Python alone": lock_wait_us(lambda: sum(range(_SPIN_STEPS)), 1.0),
    }
    for what, wait_us in waits_us.items():
        print(f"a wait for Python's lock beside a thread of {what}: {wait_us:.0f} us")
    print()
    rows = [
        measured(way, world, given, busy=busy)
        for world, busy in ((2, False), (4, False), (2, True))
        for way in given.way or WAYS
    ]
    print(shown(rows, memcpy))
    if given.out is not None:
        document = {
            "date": time.strftime("%Y-%m-%d"),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "torch": torch.__version__,
            "memcpy_gb_per_s": memcpy,
            "lock_wait_us": waits_us,
            "rows": rows,
        }
        given.out.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

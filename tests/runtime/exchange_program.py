"""Real ranks that exchange parts over TCP: a list of cases on stdin, results as JSON on stdout.

Run as `exchange_program.py WORLD FOLDER`. Every rank is a fork of this process; all do all cases.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from castor_lab.paced_device import PacedCapture, PacedDevice
from castor_policy.chunk_schedule import Link
from castor_policy.job_options import TrafficOptions
from castor_runtime.arena import PartLayout, Replica, SegmentOwner
from castor_runtime.state.sections import copy_section, lay_out, part_bytes
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.device import (
    Arrived,
    CpuDevice,
    Post,
    Receive,
    Send,
    Transfer,
)
from castor_runtime.trainer.exchange import Exchange, Exchanged, Part
from castor_runtime.trainer.idle_spans import Gate, IdleSpans
from castor_runtime.trainer.launches import ByPosition, ByTime
from castor_runtime.trainer.tcp_streams import TcpStreams
from castor_runtime.trainer.traffic import Traffic

DTYPES = [torch.float32, torch.uint8, torch.bfloat16, torch.int64]
DEADLINE_S = 200.0
OWNER = SegmentOwner("exchange-test", "0" * 16, "agent", b"0123456789abcdef")


class CountingDevice(CpuDevice):
    """Counts how many rounds are on the network at once."""

    most = 0
    now = 0

    def post(
        self,
        number: int,
        sends: Sequence[Send],
        receives: Sequence[Receive],
        arrived: Arrived,
        after: Sequence[Transfer],
    ) -> Transfer:
        def counted(began_ns: int, ended_ns: int) -> None:
            self.now -= 1
            arrived(began_ns, ended_ns)

        self.now += 1
        self.most = max(self.most, self.now)
        return super().post(number, sends, receives, counted, after)


def live_of(rank: int, case: dict[str, Any], round_number: int) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1000 * round_number + rank)
    tensors: list[torch.Tensor | None] = []
    for index, size in enumerate(case["sizes"]):
        count = size + rank * case["larger_by"]
        values = torch.randint(0, 100, (count,), generator=generator)
        tensors.append(None if index == 2 else values.to(DTYPES[index % len(DTYPES)]))
    return tensors


def sections_of(rank: int, case: dict[str, Any]) -> Any:
    return lay_out(
        (f"t{index}", DTYPES[index % len(DTYPES)], [size + rank * case["larger_by"]])
        for index, size in enumerate(case["sizes"])
    )


def expected(rank: int, case: dict[str, Any], round_number: int) -> torch.Tensor:
    sections = sections_of(rank, case)
    part = torch.zeros(part_bytes(sections), dtype=torch.uint8)
    for section, tensor in zip(sections, live_of(rank, case, round_number), strict=True):
        copy_section(section, part, tensor)
    return part


def post_of(rank: int, case: dict[str, Any]) -> Post:
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    world, remote = dist.get_world_size(), range(1, case["replicas"])
    holders = [(rank + step) % world for step in remote]
    sources = [(rank - step) % world for step in remote]
    return TcpStreams(
        group, holders, sources, case.get("streams", 1), address="127.0.0.1", timeout_s=DEADLINE_S
    ).post


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


class Rank:
    """One rank's memory and device for one case."""

    def __init__(self, rank: int, folder: Path, post: Post, case: dict[str, Any]) -> None:
        self.case = case
        world = dist.get_world_size()
        rows = tuple(
            tuple((machine + step) % world for step in range(case["replicas"]))
            for machine in range(world)
        )
        self.settings = TrainerSettings(
            job=OWNER.job,
            run=OWNER.run,
            rank=rank,
            machine=rank,
            local_rank=0,
            generation=1,
            ranks_per_machine=1,
            replicas=rows,
            socket="",
            control="",
            started_ns=0,
            traffic=TrafficOptions(scheme=case["scheme"], chunk_bytes=case["chunk"]),
        )
        self.gate = Gate()
        if case["device"] == "paced":
            self.device: Any = PacedDevice(post, self.gate, case["copy_bps"], case["chunk"])
        elif case["device"] == "captured":
            self.device = PacedCapture(post, case["copy_bps"], case["chunk"])
        else:
            self.device = CountingDevice(post)
        self.calls = [0, 0]
        in_order = case.get("launches") == "position"
        self.launches = ByPosition(self.gate, lambda _work: None) if in_order else ByTime(self.gate)
        self.exchange = Exchange(
            self.settings,
            self.device,
            self.gate,
            self.launches,
            [part_bytes(sections_of(other, case)) for other in range(world)],
            lambda: self.call(0),
            lambda: self.call(1),
        )
        self.replicas = {
            other: Replica.create(
                f"{case['name']}-{rank}-{other}",
                OWNER,
                PartLayout(other, part_bytes(sections_of(other, case)), 4096, case["chunk"]),
                folder=folder,
            )
            for other in [rank, *(source for source, _ in self.settings.sources())]
        }
        self.traffic = Traffic(case["scheme"], case["chunk"], case["replicas"] - 1)
        if case["spans_ns"] is not None:
            self.traffic = Traffic(
                case["scheme"],
                case["chunk"],
                case["replicas"] - 1,
                tuple(case["spans_ns"]),
                Link(*case["link"]),
            )

    def call(self, which: int) -> None:
        self.calls[which] += 1

    def checkpoint(
        self, number: int, training: Callable[[], None]
    ) -> tuple[Exchanged, dict[int, bool], bool]:
        """Exchange once; return which parts are as they were, and whether their digests match.

        `training` is called when the capture has begun.
        """
        rank = self.settings.rank
        live = live_of(rank, self.case, number)
        parts = {other: Part(held.begin(number, 1, None)) for other, held in self.replicas.items()}
        own = parts.pop(rank)
        self.freed_ns = 0

        def update() -> None:
            for tensor in live:
                if tensor is not None:
                    tensor.zero_()  # nothing may be read of it any more
            assert self.freed_ns == 0, "the state is told to be free once"
            self.freed_ns = time.monotonic_ns()

        self.device.capture(sections_of(rank, self.case), live, own.data, update)
        training()
        done = self.exchange.run(own, parts, self.traffic)
        assert self.freed_ns, "the state is free by then"
        own.digest_up_to(own.data.numel())
        right, whole = {}, True
        for other, part in {rank: own, **parts}.items():
            right[other] = torch.equal(part.data, expected(other, self.case, number))
            part.writing.commit(b"", part.digests)
            whole = whole and self.replicas[other].verify(number) == []
        return done, right, whole

    def play(self, log: list[tuple[str, int]]) -> None:
        """Be training: its traffic comes and goes, and each time a few own parts get copied."""

        def note(what: str) -> None:
            log.append((what, time.monotonic_ns()))

        def done(kind: str) -> int:
            return sum(interval.kind == kind for interval in self.device.intervals())

        pieces = self.traffic.pieces(self.replicas[self.settings.rank].data_bytes)
        for span in range(len(self.traffic.spans_ns)):
            ready = sum(piece.span <= span for piece in pieces)
            until(lambda ready=ready: done("copy") >= ready)
            if span + 1 == len(self.traffic.spans_ns):
                break
            before = done("own")
            note("occupy")
            self.gate.occupy()
            until(lambda before=before: done("own") >= before + 2)
            note("release")
            self.gate.release(span + 1)
        note("open")
        self.gate.open()


def run_case(rank: int, folder: Path, post: Post, case: dict[str, Any]) -> dict[str, Any]:
    dist.barrier()
    one = Rank(rank, folder, post, case)
    log: list[tuple[str, int]] = []
    outcome: dict[str, Any] = {"right": [], "whole": [], "done": []}
    if case["leaves"] == rank:
        os._exit(0)
    opened_ns = 0

    def open_gate() -> None:
        nonlocal opened_ns
        opened_ns = time.monotonic_ns()
        one.gate.open()

    for number in range(case["checkpoints"]):
        log.clear()
        one.calls = [0, 0]
        one.gate.close()
        training = threading.Thread(target=one.play, args=(log,), daemon=True)
        if not case["plays"]:
            training = threading.Timer(case["pause_s"], open_gate)
            training.daemon = True
        done, right, whole = one.checkpoint(number, training.start)
        training.join()
        outcome["right"].append(list(right.values()))
        outcome["whole"].append(whole)
        outcome["done"].append(
            [done.sent_bytes, done.network_s, done.sent_s, done.captured_s, *one.calls]
        )
        outcome["freed_ns"] = one.freed_ns
        outcome["opened_ns"] = opened_ns
    outcome["log"] = log
    outcome["pieces"] = [
        [piece.span, piece.replica, piece.start, piece.end]
        for piece in one.traffic.pieces(one.replicas[rank].data_bytes)
    ]
    if isinstance(one.device, CountingDevice):
        outcome["most_under_way"] = one.device.most
        return outcome
    outcome["intervals"] = [
        [i.kind, i.number, i.began_ns, i.ended_ns, i.size_bytes] for i in one.device.intervals()
    ]
    if isinstance(one.device, PacedDevice):
        outcome["peak_bytes"] = one.device.peak_buffer_bytes
    one.device.close()
    return outcome


class Collectives:
    """What training communicates by; notes what this process launches, in its order."""

    def __init__(self, launched: list[str]) -> None:
        self.launched = launched
        self.some = dist.new_group([0, 1], backend="gloo")
        self.calls = 0

    def all_reduce(self, tensor: torch.Tensor, group: Any = None, *, async_op: bool = False) -> Any:
        self.calls += 1
        self.launched.append(f"{'all' if group is None else 'some'} {self.calls}")
        return dist.all_reduce(tensor, group=group, async_op=async_op)


def run_in_order(rank: int, folder: Path, post: Post, case: dict[str, Any]) -> dict[str, Any]:
    """Train beside the exchanges, on each rank at a pace of its own."""
    launched: list[str] = []
    collectives = Collectives(launched)

    def noted(number: int, *moves: Any) -> list[Any]:
        launched.append(f"round {number}")
        return post(number, *moves)

    one = Rank(rank, folder, noted, case)
    spans = IdleSpans(one.gate)
    spans.tell_passed(one.launches.passed)
    spans.install(collectives)
    chance = random.Random(rank)
    outcome: dict[str, Any] = {"launched": [], "right": [], "failed": []}

    def exchange(number: int) -> None:
        time.sleep(chance.uniform(0, 0.01))
        try:
            _, right, _ = one.checkpoint(number, lambda: None)
            outcome["right"].append(list(right.values()))
        except Exception:  # noqa: BLE001 - a result like any other
            outcome["failed"].append(traceback.format_exc())
            one.launches.fail()

    for number, layers in enumerate(case["layers"]):
        launched.clear()
        collectives.calls = 0
        spans.end_iteration()
        one.gate.close()
        one.launches.expect()
        replicates = threading.Thread(target=exchange, args=(number,), daemon=True)
        replicates.start()
        one.launches.handed_over()
        for layer in range(layers):
            time.sleep(chance.uniform(0, 0.02))
            work = collectives.all_reduce(torch.ones(100), async_op=layer % 2 == 0)
            if layer == 1:
                collectives.all_reduce(torch.ones(100), collectives.some)
            if work is not None:
                work.wait()
        time.sleep(chance.uniform(0, 0.02))
        launched.append("the update")
        spans.before_update()
        one.gate.open()
        one.launches.let_all_go()
        replicates.join(DEADLINE_S)
        outcome["launched"].append(list(launched))
    outcome["spans"] = one.traffic.round_spans(
        [part_bytes(sections_of(other, case)) for other in range(dist.get_world_size())]
    )
    return outcome


def run_rank(rank: int, world: int, folder: Path, cases: list[dict[str, Any]]) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    results: dict[str, Any] = {}
    for case in cases:
        try:
            run = run_in_order if "launches" in case else run_case
            results[case["name"]] = run(rank, folder, post_of(rank, case), case)
        except Exception as error:  # noqa: BLE001 - a result like any other
            results[case["name"]] = {"error": repr(error), "trace": traceback.format_exc()}
    (folder / f"{rank}.json").write_text(json.dumps(results))


def main() -> None:
    world, folder = int(sys.argv[1]), Path(sys.argv[2])
    cases = json.load(sys.stdin)
    torch.set_num_threads(1)
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                run_rank(rank, world, folder, cases)
            except BaseException:  # noqa: BLE001 - the process ends with it
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    main()

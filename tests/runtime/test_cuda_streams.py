"""The real device code of GPUs on one that is none: every use of its memory must be ordered.

Training runs beside: it takes memory for activations and frees it while kernels that use it are
still queued, as training does, and changes the state once a checkpoint lets it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from castor_lab.fake_cuda import FakeCuda, FakeNccl, Stream
from castor_lab.fake_cuda.threads import TRACKED
from castor_runtime.state.sections import lay_out, part_bytes
from castor_runtime.trainer import cuda_device, engine_device, idle_spans, launches, staging
from castor_runtime.trainer.captured_device import CapturedDevice
from castor_runtime.trainer.device import Receive, Send, Transfer
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.joining import choose_launches
from castor_runtime.trainer.moment import Moment, Moments
from castor_runtime.trainer.staged_device import StagedDevice

CHUNK = 4096
LAYERS = 4
IN_FLIGHT = 3
DEADLINE_S = 60.0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    fake.set_device(fake.device)
    monkeypatch.setattr(cuda_device, "dist", FakeNccl(fake))
    monkeypatch.setattr(cuda_device, "_PROBE_BYTES", (1 << 10, 32 << 10))  # no time passes here
    with fake.installed(engine_device, staging, idle_spans, launches):
        yield fake


def to_itself(
    _tag: int,
    outgoing: Sequence[tuple[int, torch.Tensor]],
    incoming: Sequence[tuple[int, torch.Tensor]],
) -> list[None]:
    """Send the processor's memory to this very rank: the thread that posts reads it."""
    for (_, source), (_, target) in zip(outgoing, incoming, strict=True):
        target.copy_(source)
    return []


class Job:
    """One rank that trains and checkpoints to itself; the thread that makes it is the training."""

    def __init__(
        self,
        cuda: FakeCuda,
        stream: Stream,
        *,
        steps_in_it: bool = True,
        send: str = "nccl",
        saves: bool = False,
    ) -> None:
        self.cuda = cuda
        self.stream = stream
        self.steps_in_it = steps_in_it
        self.saves = saves
        self.gate = Gate()
        self.device: CapturedDevice | StagedDevice = (
            cuda_device.CudaCapture(to_itself, cuda.device, CHUNK)
            if send == "cpu"
            else cuda_device.CudaDevice(None, cuda.device, self.gate, CHUNK)  # type: ignore[arg-type]  # no group
        )
        self.launches = choose_launches(self.device, self.gate)
        self.nccl = FakeNccl(cuda)
        self.gathered = cuda.empty(CHUNK)
        shapes = {"flat": (6000,), "turned": (50, 40), "odd": (5,)}
        self.sections = lay_out([(name, torch.float32, shape) for name, shape in shapes.items()])
        self.moments = Moments(self.sections, ["odd"], ["flat", "turned"])
        with cuda.stream(stream):
            turned = cuda.tensor(torch.randn(40, 50)).t()  # does not lie in one piece
            self.live = [
                cuda.tensor(torch.randn(6000)),
                turned,
                cuda.tensor(torch.arange(5.0)),
            ]
        total = part_bytes(self.sections)
        self.own, self.remote = cuda.host_memory(total), cuda.host_memory(total)
        self.number = 0

    def forward(self) -> None:
        """Queue layers, each with an activation that is freed while they are still queued."""
        with self.cuda.stream(self.stream):
            for _ in range(LAYERS):
                self.layer()

    def layer(self) -> None:
        held = [self.cuda.empty(size) for size in (CHUNK, 3 * CHUNK, 8 * CHUNK)]
        for one in held:
            self.cuda.launch("a layer", reads=self.live, writes=[one])

    def backward(self) -> None:
        """Queue a collective before each layer, and rounds behind some of them."""
        with self.cuda.stream(self.stream):
            for layer in range(LAYERS):
                is_async = layer % 2 == 0
                work = self.nccl.all_gather_into_tensor(
                    self.gathered, self.gathered, async_op=is_async
                )
                self.launches.passed(work)
                if work is not None:
                    work.wait()
                self.layer()

    def update(self) -> None:
        with self.cuda.stream(self.stream):
            self.device.note_update()
            self.cuda.launch("the update", writes=self.live)

    def iterate(self, chunk_bytes: int) -> None:
        """Hand a moment over, compute beside its checkpoint, and update once it is done."""
        stream = self.stream if self.steps_in_it else self.cuda.default
        with self.cuda.stream(stream), self.device.moment():
            moment = self.moments.take(self.live)
        self.gate.close()
        self.gate.occupy()  # the own replica is copied beside training's traffic
        self.launches.expect()
        queued = threading.Event()  # says nothing of order: only that layers are queued by now
        failed: list[BaseException] = []

        def checkpoint() -> None:
            try:
                assert queued.wait(DEADLINE_S)
                self.checkpoint(moment, chunk_bytes)
            except BaseException as error:  # noqa: BLE001 - raised below
                failed.append(error)
                self.launches.fail()

        replicates = TRACKED.Thread(target=checkpoint, name="replication")
        replicates.start()
        self.forward()
        queued.set()
        with self.cuda.stream(stream):
            self.launches.handed_over()
        self.backward()
        self.gate.open()
        with self.cuda.stream(stream):
            self.launches.let_all_go()
        replicates.join()
        if failed:
            raise failed[0]
        self.update()

    def checkpoint(self, moment: Moment, chunk_bytes: int) -> None:
        """Do what the replicator's thread does."""
        self.device.enter_thread()
        freed: list[tuple[str, ...]] = []

        def state_free() -> None:
            with self.device.aside():
                freed.append(moment.torn())

        total = self.own.numel()
        if self.saves:
            self.device.hold_live(self.sections, moment.live, total)
        else:
            self.device.capture(self.sections, moment.live, self.own, state_free)
        under_way: list[Transfer] = []
        starts = range(0, total, chunk_bytes)

        def launch(index: int) -> None:
            start = starts[index]
            end = min(start + chunk_bytes, total)
            receives = [Receive(0, self.remote[start:end])]
            after = (
                under_way[index - IN_FLIGHT : index - IN_FLIGHT + 1] if index >= IN_FLIGHT else []
            )
            self.number += 1
            under_way.append(
                self.device.post(
                    self.number, [Send(0, start, end)], receives, lambda *_: None, after
                )
            )

        # Some at the hand-over, some behind each collective, and some are left for the update.
        self.launches.begin([index // 2 for index in range(len(starts))], launch)
        for index in range(len(starts)):
            self.launches.wait(index)
        self.device.stop_yielding_to_training()
        for transfer in under_way:
            transfer.wait()
        self.device.wait_captured()
        if self.saves:  # the own replica comes last, out of the same live state
            for start in range(0, total, CHUNK):
                self.device.read(start, self.own[start : start + CHUNK])
            state_free()
        assert freed == [()]
        assert torch.equal(self.own, self.remote)


def said(cuda: FakeCuda) -> list[str]:
    return [str(fault) for fault in cuda.faults]


@pytest.mark.parametrize("send", ["cpu", "nccl"])
@pytest.mark.parametrize("steps_in_it", [True, False])
@pytest.mark.parametrize("side", [False, True])
def test_no_use_of_the_gpus_memory_is_unordered(
    cuda: FakeCuda, side: bool, steps_in_it: bool, send: str
) -> None:
    stream = cuda.new_stream("a stream of the user's") if side else cuda.default
    job = Job(cuda, stream, steps_in_it=steps_in_it, send=send)
    job.forward()
    job.update()
    for chunk_bytes in (CHUNK, CHUNK, 3 * CHUNK):  # the schedule's chunks grow
        job.iterate(chunk_bytes)
    job.device.close()
    assert said(cuda) == []


@pytest.mark.parametrize("send", ["cpu", "nccl"])
def test_nor_where_the_own_replica_comes_last(cuda: FakeCuda, send: str) -> None:
    job = Job(cuda, cuda.new_stream("a stream of the user's"), send=send, saves=True)
    job.forward()
    job.update()
    for chunk_bytes in (CHUNK, 3 * CHUNK):
        job.iterate(chunk_bytes)
    job.device.close()
    assert said(cuda) == []


def test_on_the_gpu_too_a_round_comes_after_its_collective(cuda: FakeCuda) -> None:
    job = Job(cuda, cuda.default)
    job.nccl = FakeNccl(cuda, takes_ns=1_000_000)  # the host is far ahead of it
    job.iterate(CHUNK)
    job.device.close()
    rounds = cuda_device.dist.busy_ns  # type: ignore[attr-defined]  # the fixture's
    ended = [0, *(end for _, end in job.nccl.busy_ns)]
    positions = [index // 2 for index in range(len(rounds))]
    assert max(positions) > 0
    for position, (began_ns, _) in zip(positions, rounds, strict=True):
        assert began_ns >= ended[min(position, LAYERS)]


@pytest.mark.parametrize("send", ["cpu", "nccl"])
def test_the_thread_that_trains_never_waits_for_the_gpu(
    cuda: FakeCuda, send: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(cuda, cuda.default, send=send)
    waits: list[str] = []
    wait_until = job.device.wait_until

    def noted(done: Callable[[], bool]) -> None:
        waits.append(threading.current_thread().name)
        wait_until(done)

    monkeypatch.setattr(job.device, "wait_until", noted)
    cuda.host_waits_by.clear()
    job.iterate(CHUNK)
    job.device.close()
    assert "thread MainThread" not in cuda.host_waits_by
    assert set(waits) == {"replication"}, "nor for a thread that does"


def test_what_is_sent_from_cpu_memory_takes_none_of_the_gpus(cuda: FakeCuda) -> None:
    job = Job(cuda, cuda.default, send="cpu")
    for _ in range(3):
        job.iterate(CHUNK)
    job.device.close()
    turned_bytes = 8192  # a whole copy of the tensor that does not lie in one piece
    kept = [size for pool, size in cuda.memory.fresh_bytes.items() if pool != cuda.default.name]
    assert sum(kept) <= turned_bytes


def test_sub_buffers_are_kept_and_none_is_of_trainings_pool(cuda: FakeCuda) -> None:
    job = Job(cuda, cuda.default)
    job.forward()
    for _ in range(3):
        job.iterate(CHUNK)
    job.device.close()
    (kept,) = (size for pool, size in cuda.memory.fresh_bytes.items() if pool != cuda.default.name)
    turned_bytes = 8192  # a whole copy of the tensor that does not lie in one piece
    assert 2 * CHUNK <= kept - turned_bytes <= 2 * IN_FLIGHT * CHUNK

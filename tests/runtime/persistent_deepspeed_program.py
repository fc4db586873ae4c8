"""Two real DeepSpeed ranks, run by `test_persistent_deepspeed.py` in a process of its own.

    python persistent_deepspeed_program.py OUT

Trains, writes the state of iteration 3 twice (DeepSpeed's own save, and Castor's persistent tier
out of checkpoint memory), and goes on in four ways from there. What each way ends with is left in
OUT/fp32 and OUT/bf16. Ranks are forked from one warm process, which saves the imports (as Castor's
fork server does).
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")

import deepspeed
import deepspeed.comm.torch
import deepspeed.runtime.zero.muon.muon_optimizer  # as below
import torch
import torch._dynamo
import torch._inductor.compile_fx  # DeepSpeed would import these four once in every rank
import torch.distributed.fsdp
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from castor_runtime.arena import Arena, PartLayout, Replica, remove_dead
from castor_runtime.persistent.manifest import Attempt
from castor_runtime.persistent.persist import PartOrder, PersistOrder, PersistResult, persist
from castor_runtime.persistent.template import write_template
from castor_runtime.state.meta import decode, encode
from castor_runtime.state.protocol import PersistentPart
from castor_runtime.trainer.deepspeed_state import DeepSpeedState
from castor_runtime.trainer.random_state import capture_random_state, restore_random_state

WORLD = 2
SAVED_AT, LAST = 3, 6
JOB = "persistent-test"
FINGERPRINT = "5c" * 16
PART = PartLayout(rank=0, data_bytes=1 << 20, meta_bytes=1 << 16, chunk_bytes=1 << 16)


class Model(torch.nn.Module):
    """Tied, frozen and persistent parameters; buffers that are saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(17, 12)
        self.frozen = torch.nn.Linear(12, 12)
        for parameter in self.frozen.parameters():
            parameter.requires_grad = False
        self.norm = torch.nn.LayerNorm(12)
        self.hidden = torch.nn.Linear(12, 12)
        self.dropout = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(12, 17, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.alias = torch.nn.Module()
        self.alias.register_buffer("seen", self.seen)
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)
        self.register_buffer("late", None)
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.count += 1
            self.seen += tokens.float().mean().to(self.seen.dtype)
            self.unsaved += 1
            if self.late is None:
                self.late = tokens.double()
            self.cache = torch.cat([self.cache, tokens.float().mean().reshape(1)])
        embedded = self.embedding(tokens)
        hidden = self.dropout(self.hidden(self.norm(self.frozen(embedded))))
        logits = self.head(hidden + self.unsaved.sum().to(hidden.dtype) * 1e-3)
        return torch.nn.functional.cross_entropy(logits.float(), (tokens + 1) % 17)


def make_engine(dtype: str) -> Any:
    torch.manual_seed(3)
    model = Model()
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2
    )
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {
            "stage": 3,
            "sub_group_size": 150,
            "stage3_param_persistence_threshold": 20,
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_num_steps": 2, "total_num_steps": 20, "warmup_max_lr": 1e-2},
        },
    }
    if dtype == "bf16":
        config["bf16"] = {"enabled": True}
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def train(engine: Any, first: int, last: int) -> list[float]:
    losses = []
    for iteration in range(first, last + 1):
        draw = torch.Generator().manual_seed(100 * iteration + engine.global_rank)
        loss = engine(torch.randint(0, 17, (4,), generator=draw))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def whole_state(engine: Any) -> dict[str, Any]:
    state = DeepSpeedState(engine)
    live = zip(state.sections, state.live(), strict=True)
    return {
        "sections": {s.name: None if t is None else t.detach().clone() for s, t in live},
        "model": [p.ds_tensor.detach().clone() for p in engine.module.parameters()],
        "meta": decode(encode(state.meta())),
        "random": torch.get_rng_state(),
    }


def sections_of(state: DeepSpeedState) -> list[dict[str, Any]]:
    return [
        {"name": s.name, "offset": s.offset, "dtype": s.dtype, "shape": list(s.shape)}
        for s in state.sections
    ]


def capture(state: DeepSpeedState, segment: str, iteration: int) -> None:
    meta = encode({**state.meta(), "random": capture_random_state()})
    with Replica.open(segment) as replica:
        writing = replica.begin(iteration, 1, None)
        part = torch.frombuffer(writing.data, dtype=torch.uint8)
        for section, tensor in zip(state.sections, state.live(), strict=True):
            if tensor is not None:
                section.view(part).copy_(tensor.detach())
        writing.commit(meta)


def uninterrupted(out: Path, dtype: str, rank: int) -> Any:
    engine = make_engine(dtype)
    write_template(engine, out / f"template-{rank}")
    torch.manual_seed(50 + rank)
    state = DeepSpeedState(engine)
    sections = sections_of(state)
    assert state.sections[-1].offset + 4096 < PART.data_bytes
    losses = train(engine, 1, SAVED_AT)
    capture(state, (out / "segments").read_text().split()[rank], SAVED_AT)
    engine.save_checkpoint(str(out / "deepspeed"))
    saved = whole_state(engine)
    full = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            full[name] = parameter.detach().clone()
    losses += train(engine, SAVED_AT + 1, LAST)
    return {
        "sections": sections,
        "saved": saved,
        "full": full,
        "losses": losses,
        "end": whole_state(engine),
    }


def plain_deepspeed(folder: str) -> Callable[[Path, str, int], Any]:
    """Load with nothing but DeepSpeed, from `latest`, and go on; the draws start anew."""

    def resumed(out: Path, dtype: str, rank: int) -> Any:
        engine = make_engine(dtype)
        # Not strict: DeepSpeed knows nothing of a buffer that is made in the first forward pass.
        path, _ = engine.load_checkpoint(str(out / folder), load_module_strict=False)
        assert path is not None
        loaded = whole_state(engine)
        torch.manual_seed(70 + rank)
        losses = train(engine, SAVED_AT + 1, LAST)
        return {"loaded": loaded, "losses": losses, "end": whole_state(engine)}

    return resumed


def castor(out: Path, dtype: str, rank: int) -> Any:
    """Resume as a trainer of Castor does that has lost its memory."""
    engine = make_engine(dtype)
    state = DeepSpeedState(engine)
    part = PersistentPart((str(out / "castor"),), SAVED_AT, rank, JOB, FINGERPRINT)
    meta = state.restore_persistent(part)
    restore_random_state(meta["random"])
    after = whole_state(engine)
    losses = train(engine, SAVED_AT + 1, LAST)
    return {"loaded": after, "losses": losses, "end": whole_state(engine)}


def untrained(out: Path, dtype: str, rank: int) -> Any:
    """Write a checkpoint of iteration 0: the optimizer has no state yet."""
    engine = make_engine(dtype)
    write_template(engine, out / f"template-{rank}")
    state = DeepSpeedState(engine)
    capture(state, (out / "segments").read_text().split()[rank], 0)
    engine.save_checkpoint(str(out / "deepspeed-untrained"))
    return sections_of(state)


def run_ranks(out: Path, dtype: str, name: str, work: Callable[[Path, str, int], Any]) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        _fork(lambda rank=rank: _rank(out, dtype, name, work, rank, port)) for rank in (0, 1)
    ]
    for child in children:
        _join(child, name)
    return [torch.load(out / f"{name}-{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _rank(
    out: Path, dtype: str, name: str, work: Callable[[Path, str, int], Any], rank: int, port: int
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    # Else DeepSpeed compiles C++. (As an attribute, deepspeed.comm.torch is torch itself.)
    vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
    deepspeed.init_distributed("gloo")
    torch.save(work(out, dtype, rank), out / f"{name}-{rank}.pt")


def run_persist(out: Path, order: PersistOrder, name: str) -> PersistResult:
    """Carry an order out in a process of its own, through its JSON."""
    text = order.to_json()

    def child() -> None:
        torch.save(persist(PersistOrder.from_json(text)), out / name)

    _join(_fork(child), name)
    result = torch.load(out / name, weights_only=False)
    assert isinstance(result, PersistResult)
    return result


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must not return into the parent's code
            traceback.print_exc()
            os._exit(1)
    return child


def _join(child: int, name: str) -> None:
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(f"{name}: a process ended with status {status}")


def orders(out: Path, sections: list[Any], folder: str, iteration: int) -> list[PersistOrder]:
    attempt = Attempt(JOB, FINGERPRINT, iteration, 1, WORLD)
    segments = (out / "segments").read_text().split()
    return [
        PersistOrder(
            tier=str(out / folder),
            attempt=attempt,
            parts=(PartOrder(rank, segments[rank], str(out / f"template-{rank}"), sections[rank]),),
            wait_s=60.0,
            keep=2,
            bytes_per_s=1e9,
        )
        for rank in range(WORLD)
    ]


def main(out: Path, dtype: str) -> None:
    torch.set_num_threads(1)
    with Arena(f"{JOB}-{os.getpid()}", "0" * 16, "node-0", bytes.fromhex(FINGERPRINT)) as arena:
        try:
            arena.add_parts(
                [
                    PartLayout(rank, PART.data_bytes, PART.meta_bytes, PART.chunk_bytes)
                    for rank in range(WORLD)
                ]
            )
            (out / "segments").write_text("\n".join(arena.segments().values()))
            (out / "castor").mkdir()
            if dtype == "fp32":
                sections = run_ranks(out, dtype, "untrained", untrained)
                for order in orders(out, sections, "castor-untrained", 0):
                    run_persist(out, order, "persist-untrained")
            before = run_ranks(out, dtype, "uninterrupted", uninterrupted)
            results = [
                run_persist(out, order, f"persist-{index}")
                for index, order in enumerate(
                    orders(out, [rank["sections"] for rank in before], "castor", SAVED_AT)
                )
            ]
        finally:
            arena.close(unlink=True)
            remove_dead(job=f"{JOB}-{os.getpid()}")  # the job's lock
    assert [result.published for result in results] == [False, True]
    run_ranks(out, dtype, "own", plain_deepspeed("deepspeed"))
    run_ranks(out, dtype, "plain", plain_deepspeed("castor"))
    run_ranks(out, dtype, "castor", castor)
    for folder in ("castor", "deepspeed"):
        torch.save(
            get_fp32_state_dict_from_zero_checkpoint(str(out / folder)), out / f"fp32-{folder}.pt"
        )


if __name__ == "__main__":
    for dtype in ("fp32", "bf16"):
        (Path(sys.argv[1]) / dtype).mkdir()
        main(Path(sys.argv[1]) / dtype, dtype)

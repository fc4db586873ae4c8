"""A warm process that forks real training ranks for the tests of the checkpointer.

Reads one JSON object a line: {"environment": {...}, "program": name, "options": {...}, "log":
path}; answers each with {"pid": ...}, and {"exited": pid, "code": ...} when a rank has ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import runpy
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, ClassVar

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import deepspeed.comm.torch
import deepspeed.runtime.zero.muon.muon_optimizer
import numpy as np
import torch
import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed as dist
import torch.distributed.fsdp
from outside_engine import Ledger

from castor import Checkpointer, TensorState
from castor_configs.model import Model
from castor_lab.programs.language_model import build_language_model
from castor_lab.programs.text import TextSampler
from castor_runtime.state.meta import encode
from castor_runtime.trainer import joining
from castor_runtime.trainer.deepspeed_state import DeepSpeedState
from castor_runtime.trainer.device import CpuDevice
from castor_runtime.trainer.random_state import capture_random_state

torch.set_num_threads(1)
# It would compile a C++ op, and would send through memory what is to go over gloo.
# (By its full name: `deepspeed.comm.torch` as an attribute is torch itself.)
vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None

SHAPE = Model(
    name="small",
    family="gpt2",
    hidden=32,
    intermediate=64,
    layers=2,
    heads=2,
    vocab=260,
    sequence_length=16,
    micro_batch=2,
)


class Odd(torch.nn.Module):
    """A language model with what is neither trained nor derived: a buffer and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_language_model(SHAPE, dropout=0.1)
        self.frozen = torch.nn.Linear(32, 1)
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen += tokens.shape[0]
        self.mean.mul_(0.9).add_(float(tokens.float().mean()) * 0.1)
        noise = random.random() + float(np.random.rand())  # noqa: NPY002 - the global state
        scale = self.frozen(torch.ones(32, dtype=self.frozen.weight.dtype)).float().sum()
        return self.model(tokens) * (1 + 0.01 * noise + 0.001 * scale + 0.001 * self.mean)


def digest(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return ""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]


def train_deepspeed(options: dict[str, Any]) -> dict[str, Any]:
    deepspeed.init_distributed("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(3)
    model = Odd()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": trained[:3], "lr": 0.01}, {"params": trained[3:], "lr": 0.02}]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config={
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 1.0,
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": 100,
                "sub_group_size": 5000,
            },
            "bf16": {"enabled": options["dtype"] == "bf16"},
            "fp16": {"enabled": options["dtype"] == "fp16", "initial_scale_power": 20},
            "steps_per_print": 1 << 30,
            **options.get("config", {}),
        },
    )
    torch.manual_seed(100 + rank)
    random.seed(200 + rank)
    np.random.seed(300 + rank)  # noqa: NPY002 - the global state
    text = torch.arange(20_000, dtype=torch.int64).mul(7919) % 256
    sampler = TextSampler(text.byte(), sequence=16, batch=2, rank=rank, world=world, seed=5)
    with torch.no_grad():
        engine(sampler.next_batch())  # gathers the parameters that stay whole, before the resuming
    checkpointer = Checkpointer(engine, state={"sampler": sampler})
    start = checkpointer.resume()
    losses = []
    for _ in range(start, options["iterations"]):
        for _ in range(2):
            loss = engine(sampler.next_batch())
            engine.backward(loss)
            engine.step()
            checkpointer.step(loss=loss)
        losses.append(float(loss))
        time.sleep(options.get("pause_s", 0.0))
    checkpointer.finish()
    state = DeepSpeedState(engine)
    live = {s.name: digest(t) for s, t in zip(state.sections, state.live(), strict=True)}
    weights = {name: digest(p.ds_tensor) for name, p in model.named_parameters()}
    meta = hashlib.sha256(encode(state.meta() | {"random": capture_random_state()})).hexdigest()
    next_loss = engine(sampler.next_batch())  # what a persistent parameter gone stale would change
    return {
        "start": start,
        "losses": losses,
        "live": live,
        "weights": weights,
        "meta": meta,
        "sampler": sampler.state_dict(),
        "next_loss": float(next_loss),
        "lr": engine.get_lr(),
    }


class LateDevice(CpuDevice):
    """Captures late, as on a machine that has other things to do."""

    def capture(self, *arguments: Any) -> None:
        time.sleep(0.1)
        super().capture(*arguments)


class Curve:
    """A user's state that grows by `rows` numbers an iteration."""

    def __init__(self, rows: int) -> None:
        self.added = rows
        self.rows: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]


def train_tensors(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("late_capture"):
        joining.CpuDevice = LateDevice
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    sizes = options["sizes"]
    # Ranks of different sizes: receivers must not reckon with their own.
    tensors = {
        f"t{i}": torch.full((size + 10 * rank,), float(rank + 1)) for i, size in enumerate(sizes)
    }
    curve = Curve(options.get("rows", 0))
    checkpointer = Checkpointer(
        TensorState(tensors), {"curve": curve}, timeout_s=options.get("timeout_s", 30.0)
    )
    start = checkpointer.resume()
    blocked: list[float] = []
    for iteration in range(start, options["iterations"]):
        began = time.monotonic()
        checkpointer.before_update()
        blocked.append(time.monotonic() - began)
        for tensor in tensors.values():
            tensor.mul_(1.0001).add_(iteration)
        curve.rows += [iteration] * curve.added
        time.sleep(options.get("pause_after_update_s", 0.0))
        began = time.monotonic()
        checkpointer.step()
        blocked[-1] += time.monotonic() - began
        time.sleep(options.get("pause_s", 0.0))
    checkpointer.finish()
    live = {name: digest(tensor) for name, tensor in tensors.items()}
    return {"start": start, "live": live, "blocked_s": blocked, "rows": curve.rows}


def train_outside_engine(options: dict[str, Any]) -> dict[str, Any]:
    """Train an engine whose adapter is none of Castor's."""
    os.environ["CASTOR_PLUGINS"] = options["plugins"]
    dist.init_process_group("gloo")
    ledger = Ledger(2000)
    checkpointer = Checkpointer(ledger)
    start = checkpointer.resume()
    for iteration in range(start, options["iterations"]):
        checkpointer.before_update()
        ledger.train(iteration * (dist.get_rank() + 1))
        checkpointer.step()
        time.sleep(options.get("pause_s", 0.0))
    checkpointer.finish()
    return {"start": start, "live": digest(ledger.sums), "entries": ledger.entries}


def train_with_teacher(options: dict[str, Any]) -> dict[str, Any]:
    """Train a weight; a teacher beside it follows between step() and the next update."""
    joining.CpuDevice = LateDevice
    dist.init_process_group("gloo")
    weight = torch.zeros(3000, requires_grad=True)
    teacher = torch.zeros(3000)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    state = TensorState({"weight": weight, "teacher": teacher}, optimizer)
    checkpointer = Checkpointer(state)
    start = checkpointer.resume()
    for iteration in range(start, options["iterations"]):
        if iteration >= options["moves_from"]:
            with torch.no_grad():
                moved = {"teacher": teacher, "weight": weight}[options["moves"]]
                held = moved.data if options["hidden"] else moved
                towards = weight.detach() + 1
                held.mul_(0.5).add_(towards, alpha=0.5)
        weight.grad = torch.full_like(weight, -1.0 - iteration)
        optimizer.step()
        checkpointer.step()
    checkpointer.finish()
    return {"start": start, "weight": float(weight[0]), "teacher": float(teacher[0])}


def run_script(options: dict[str, Any]) -> dict[str, Any]:
    sys.argv = options["arguments"]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return {}


def train_unevenly(options: dict[str, Any]) -> dict[str, Any]:
    """Fail in the user's code on rank 0; the others must find out, and not hang."""
    dist.init_process_group("gloo")
    checkpointer = Checkpointer(TensorState({"t": torch.zeros(50_000)}))
    checkpointer.resume()
    for iteration in range(options["iterations"]):
        checkpointer.before_update()
        checkpointer.step()
        if dist.get_rank() == 0 and iteration == 2:
            raise KeyError("a fault of the user's")
        time.sleep(0.02)
    checkpointer.finish()
    return {}


class RecordingDevice(CpuDevice):
    """Writes down when each round was posted."""

    posted: ClassVar[list[tuple[int, int]]] = []

    def post(self, number: int, *arguments: Any) -> Any:
        self.posted.append((number, time.monotonic_ns()))
        return super().post(number, *arguments)


def train_beside_collectives(options: dict[str, Any]) -> dict[str, Any]:
    """Wait and gather in turn, as ZeRO-3 does; from an iteration on with longer waits."""
    if not options.get("paced"):
        joining.CpuDevice = RecordingDevice
    deepspeed.init_distributed("gloo")
    part = torch.ones(options["gathered"])
    whole = torch.empty(options["gathered"] * dist.get_world_size())
    state = torch.zeros(options["size"])
    checkpointer = Checkpointer(TensorState({"state": state}))
    done = checkpointer.resume()
    iterations = []
    for iteration in range(done, options["iterations"]):
        longer = iteration >= options.get("longer_from", options["iterations"])
        pause_s = options["longer_s" if longer else "pause_s"]
        issued = []
        for layer in range(options["layers"]):
            time.sleep(pause_s)
            issued.append(time.monotonic_ns())
            handle = deepspeed.comm.all_gather_into_tensor(whole, part, async_op=layer % 2 == 1)
            if handle is not None:
                handle.wait()
        time.sleep(pause_s)
        before_update = time.monotonic_ns()
        checkpointer.before_update()
        iterations.append({"issued": issued, "before_update": before_update})
        state.add_(iteration + 1)
        checkpointer.step()
    checkpointer.finish()
    return {"iterations": iterations, "posted": RecordingDevice.posted, "state": digest(state)}


PROGRAMS = {
    "collectives": train_beside_collectives,
    "deepspeed": train_deepspeed,
    "teacher": train_with_teacher,
    "tensors": train_tensors,
    "outside": train_outside_engine,
    "script": run_script,
    "uneven": train_unevenly,
}


def run_rank(order: dict[str, Any]) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["environment"])
    try:
        result = PROGRAMS[order["program"]](order["options"])
        Path(order["log"]).with_suffix(".json").write_text(json.dumps(result))
    except BaseException:  # noqa: BLE001 - the process ends with it
        traceback.print_exc()
        return 1
    return 0


def answer(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    answer({"ready": True})
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = run_rank(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        answer({"pid": pid})
        threading.Thread(target=_reap, args=(pid,), daemon=True).start()


def _reap(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    answer({"exited": pid, "code": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main()

"""Small training scripts, each with state in a place of its own; run by test_held_state.py.

    python held_program.py MODE OUT ITERATIONS [STOP_AT]

Writes what training came to into OUT. With STOP_AT it stands still within iteration STOP_AT + 1,
after a micro-batch, for the test to kill it.
"""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.op_builder.builder import OpBuilder

from castor import Checkpointer
from castor_runtime.trainer.deepspeed_state import DeepSpeedState
from castor_runtime.trainer.unheld_state import UnheldStateWarning

ACCUMULATE = 2


class Cursor:
    """Which micro-batch is next."""

    def __init__(self) -> None:
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 8))


def configuration(zero: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": ACCUMULATE,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 10, **zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }


def build(model: torch.nn.Module, optimizer: Any = None) -> Any:
    on_cpu = isinstance(optimizer, DeepSpeedCPUAdam)
    config = configuration({"offload_optimizer": {"device": "cpu"}} if on_cpu else {})
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def batch(number: int) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(number))


def micro_batch(engine: Any, cursor: Cursor) -> torch.Tensor:
    loss: torch.Tensor = engine(batch(cursor.at)).pow(2).mean()
    cursor.at += 1
    engine.backward(loss)
    engine.step()
    return loss


def pretrain(folder: Path) -> None:
    """Train three iterations without Castor and save them as DeepSpeed does."""
    model = network()
    engine = build(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    cursor = Cursor()
    while engine.global_steps < 3:
        micro_batch(engine, cursor)
    engine.save_checkpoint(str(folder))


class Lookahead(torch.optim.Optimizer):
    """Wraps an optimizer, shares its groups, and has a state_dict of its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, inner.defaults)
        self.param_groups = inner.param_groups
        self.calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner.step(closure)
        self.calls += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "slow" not in state:
                    state["slow"], state["count"] = parameter.detach().clone(), 0
                state["count"] += 1
                if state["count"] % 3 == 0:
                    state["slow"].lerp_(parameter, 0.5)
                    parameter.copy_(state["slow"])
            group["lr"] = 0.01 / (1 + self.calls / 10)

    def state_dict(self) -> dict[str, Any]:
        return {
            "outer": super().state_dict(),
            "inner": self.inner.state_dict(),
            "calls": self.calls,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["outer"])
        self.inner.load_state_dict(state_dict["inner"])
        self.calls = state_dict["calls"]


class Wrapper(Lookahead):
    """The same without a state_dict of its own."""

    state_dict = torch.optim.Optimizer.state_dict
    load_state_dict = torch.optim.Optimizer.load_state_dict


class Counting(torch.optim.SGD):
    """Counts its steps in an attribute, and keeps what no checkpoint can hold in another."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.01)
        self.t = 0
        self.seen: Any = collections.deque(maxlen=3)

    def step(self, closure: Any = None) -> None:
        self.t += 1
        self.seen.append(self.t)
        for group in self.param_groups:
            group["lr"] = 0.01 / (1 + self.t / 10)
        super().step(closure)


class Scaled(torch.nn.Linear):
    """Keeps a history outside parameters and buffers, as layers of FP8 libraries do."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.history = [1.0]

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        scale = max(self.history)
        if self.training:
            self.history = [*self.history, float(tensor.detach().abs().max())][-4:]
        return super().forward(tensor / scale)

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.history)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.history = state.tolist()


class Data(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), index / 4000)


def cpu_adam(program: Path, model: torch.nn.Module) -> Any:
    """Make a DeepSpeedCPUAdam whose C++ part is the test's own build, not compiled here."""
    spec = importlib.util.spec_from_file_location("cpu_adam", program)
    assert spec is not None
    assert spec.loader is not None
    compiled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiled)
    OpBuilder._loaded_ops["cpu_adam"] = compiled
    # With these its running powers are not those of `pow`, from the third update on.
    return DeepSpeedCPUAdam(model.parameters(), lr=0.01, betas=(0.85, 0.98))


def optimizer_of(mode: str, model: torch.nn.Module) -> Any:
    if mode.startswith("cpu_adam="):
        return cpu_adam(Path(mode.partition("=")[2]), model)
    if mode == "own_state_dict":
        return Lookahead(torch.optim.AdamW(model.parameters(), lr=0.01))
    if mode == "wrapped":
        return Wrapper(Counting(model.parameters()))
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def model_of(mode: str) -> torch.nn.Module:
    return torch.nn.Sequential(Scaled(), network()) if mode == "own_state_dict" else network()


def refusals() -> list[str]:
    """Do what must be refused; return what was said."""
    said = []
    model = network()
    engine = build(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    without = build(network())
    other = network()

    def second_engine() -> None:
        kept = build(other, torch.optim.SGD(other.parameters(), lr=0.01))
        checkpointer.resume()
        del kept

    def refused(action: Callable[[], Any]) -> None:
        try:
            action()
        except ValueError as error:
            said.append(str(error))
        else:
            said.append("nothing")

    refused(lambda: Checkpointer(without))
    refused(lambda: Checkpointer(engine, state={"other": engine}))
    refused(lambda: Checkpointer(engine, state={"model": engine.module}))
    checkpointer = Checkpointer(engine)
    refused(lambda: Checkpointer(engine))
    refused(second_engine)
    return said


class Beside:
    """What a script may keep beside the engine without telling anybody."""

    def __init__(self, optimizer: Any) -> None:
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        self.data = iter(torch.utils.data.DataLoader(Data(), shuffle=True))
        self.module = torch.nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1, momentum=0.9)
        self.average = torch.optim.swa_utils.AveragedModel(self.module)
        self.scaler = torch.amp.GradScaler("cpu")

    def step(self) -> None:
        next(self.data)
        self.module(torch.ones(2)).sum().backward()
        self.optimizer.step()
        self.average.update_parameters(self.module)
        self.schedule.step()


class Critic(torch.nn.Linear):
    """A model beside the engine, with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def update(self, loss: float) -> None:
        self.optimizer.zero_grad()
        self(torch.full((2,), loss)).sum().backward()
        self.optimizer.step()


def said_of_late_loading(engine: Any, checkpointer: Checkpointer) -> str:
    done, engine.global_steps = engine.global_steps, 0  # as load_checkpoint sets it
    try:
        checkpointer.step()
    except ValueError as error:
        return str(error)
    finally:
        engine.global_steps = done
    return ""


def train(mode: str, out: Path, iterations: int, stop_at: int | None) -> dict[str, Any]:
    model, cursor = model_of(mode), Cursor()
    optimizer = optimizer_of(mode, model)
    engine = build(model, optimizer)
    if mode == "pretrained":
        engine.load_checkpoint(str(out.parent / "pretrained"))
        cursor.at = 3 * ACCUMULATE
    torch.manual_seed(1)
    state: dict[str, Any] = {"cursor": cursor}
    beside = Beside(optimizer) if mode == "unheld" else None
    late = Cursor() if mode == "late" else None
    critic = Critic()
    if mode == "wrapped":
        state |= {"critic": critic, "critic_optimizer": critic.optimizer}
    if mode in ("late", "pretrained"):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        state |= {"schedule": schedule, "late": late or Cursor()}
    seeded = torch.utils.data.DataLoader(Data(), generator=torch.Generator().manual_seed(0))
    # Read, and nothing to be told of.
    data: Any = iter(seeded) if mode == "pretrained" else itertools.repeat(None)
    del seeded
    checkpointer = Checkpointer(engine, state={} if mode == "unheld" else state)
    start = checkpointer.resume()
    while engine.global_steps < iterations:
        before = engine.global_steps
        loss = micro_batch(engine, cursor)
        next(data)
        if "critic" in state:
            critic.update(float(loss))
        if mode == "pretrained" and engine.global_steps > before:
            schedule.step()  # where it belongs
        checkpointer.step(loss=loss)
        if beside is not None:
            beside.step()
        if late is not None and engine.global_steps > before:
            late.at += 1
            schedule.step()
        if stop_at is not None and cursor.at == stop_at * ACCUMULATE + 1:
            time.sleep(60)
    refused = said_of_late_loading(engine, checkpointer) if late is not None else ""
    checkpointer.finish()
    live = (tensor for tensor in DeepSpeedState(engine).live() if tensor is not None)
    raw = [tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in live]
    return {
        "start": start,
        "cursor": cursor.at,
        "sha256": hashlib.sha256(b"".join(raw)).hexdigest(),
        "torch": int(torch.randint(1 << 30, ())),
        "lr": engine.get_lr(),
        "refused": refused,
        "critic": critic.weight.tolist() if mode == "wrapped" else None,
    }


def main() -> None:
    mode, out, iterations = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    stop_at = int(sys.argv[4]) if len(sys.argv) > 4 else None
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    if mode == "pretrain":
        pretrain(out.parent / "pretrained")
        return
    if mode == "refused":
        out.write_text(json.dumps(refusals()))
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(mode, out, iterations, stop_at)
    said = [str(one.message) for one in caught if issubclass(one.category, UnheldStateWarning)]
    out.write_text(json.dumps({**result, "warnings": said}))


if __name__ == "__main__":
    main()

"""Interrupts an iteration of DeepSpeed at each of its collectives, and throws it away.

    python interrupted_program.py OUT

One process, whose groups are without other ranks (as a spare's are): what training comes to is
then of no use, but the same each time. For each configuration: three iterations; then, for each n,
attempts at one more, of which the n-th collective raises. What the engine reaches after each is
compared with what it was when it was new, and the state is restored and trained on to the end.
Writes for each configuration how many attempts were interrupted, and what was different.
"""

from __future__ import annotations

import enum
import gc
import hashlib
import itertools
import json
import os
import sys
import types
from collections import UserDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from torch._C._distributed_c10d import ProcessGroup, Store
from torch.utils.checkpoint import checkpoint

from castor_runtime.agent.preload import _keep_to_the_network
from castor_runtime.state.meta import decode, encode
from castor_runtime.state.sections import WholeSections, copy_section, part_bytes
from castor_runtime.trainer.deepspeed_state import DeepSpeedState
from castor_runtime.trainer.swap import replaceable_group
from castor_runtime.trainer.swap.errors import LostRankError
from castor_runtime.trainer.swap.groups import Groups
from castor_runtime.trainer.swap.interrupted_iteration import InterruptedIteration

BEFORE, ALL = 3, 5
SECOND = 2
"""Micro-batches of an iteration."""


class Model(torch.nn.Module):
    """With, if asked to, a block that is computed twice, and a parameter that two modules use."""

    def __init__(self, again: bool, shares: bool) -> None:
        super().__init__()
        self.again = again
        self.shares = shares
        self.first = torch.nn.Linear(7, 7)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(7, 21), torch.nn.GELU(), torch.nn.Linear(21, 7))
            for _ in range(1)
        )
        self.norm = torch.nn.LayerNorm(7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True) if self.again else block(x)
        x = self.norm(x)
        last = torch.nn.functional.linear(x, self.first.weight) if self.shares else self.first(x)
        return last.square().mean()


Case = tuple[dict[str, Any], dict[str, Any], bool, bool]
CASES: dict[str, Case] = {
    "plain": ({}, {}, False, True),
    "nothing shared": ({}, {}, True, False),
    "checkpointed, clipped": (
        {"gradient_clipping": 0.1, "wall_clock_breakdown": True},
        {"overlap_comm": True},
        True,
        True,
    ),
    "offloaded": (
        {"bf16": {"enabled": True}},
        {"offload_optimizer": {"device": "cpu"}, "sub_group_size": 100},
        False,
        True,
    ),
}


def build(options: dict[str, Any], zero: dict[str, Any], again: bool, shares: bool) -> Any:
    torch.manual_seed(0)
    configuration = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": SECOND,
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 20,
            "reduce_bucket_size": 250,
            "stage3_prefetch_bucket_size": 200,
            **zero,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 4}},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }
    return deepspeed.initialize(model=Model(again, shares), config=configuration | options)[0]


def iterate(engine: Any) -> None:
    drawn = torch.Generator().manual_seed(engine.global_steps)
    dtype = next(engine.module.parameters()).dtype
    for _ in range(SECOND):
        x = torch.randn(2, 7, generator=drawn).to(dtype).requires_grad_()
        engine.backward(engine(x))
        engine.step()


def taken(state: DeepSpeedState) -> tuple[torch.Tensor, bytes]:
    part = torch.zeros(part_bytes(state.sections), dtype=torch.uint8)
    for section, live in zip(state.sections, state.live(), strict=True):
        if live is not None:
            copy_section(section, part, live)
    return part, encode(state.meta())


class Counting:
    """Stands before each collective of every group, and has one raise."""

    def __init__(self) -> None:
        self.left = -1
        self.done = 0
        lone = replaceable_group.LoneRank
        begun = lone._done

        def done(group: Any, outputs: Any) -> Any:
            self.done += 1
            self.left -= 1
            if self.left == 0:
                raise LostRankError("planned")
            return begun(group, outputs)

        lone._done = done  # type: ignore[method-assign]


IGNORED = (
    # In a checkpoint's meta.
    ".global_steps",
    ".global_samples",
    ".micro_steps",
    ".skipped_steps",
    ".lr_scheduler",
    ".loss_scaler",
    ".overflow",
    # Set before anything reads them, or only reported.
    "._global_grad_norm",
    "._step_applied",
    ".tput_timer",
    ".timers",
    ".engine_timers_cache",
    ".warn_unscaled_loss",
    ".n_caching_allocator_flushes",
    # Room, whatever it holds; and what the test itself or the checkpoint's adapter put there.
    ".buffer",
    ".optimizer.optimizer",
    ".basic_optimizer",
    ".offload_states",
    "._config",
    ".config",
)
APART = (
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    Store,
    ProcessGroup,
    torch.Generator,
)
PLAIN = (bool, int, float, str, bytes, type(None), enum.Enum, torch.dtype, torch.device)


def reached(engine: Any) -> dict[str, str]:
    """All that an engine reaches, by the way to it: plain values, and what tensors look like."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    todo: deque[tuple[str, Any]] = deque([("", engine), ("stack", FWD_MODULE_STACK)])
    while todo:
        path, one = todo.popleft()
        if path.endswith(IGNORED) or isinstance(one, APART):
            continue
        if isinstance(one, PLAIN):
            found[path] = repr(one)
        elif id(one) not in seen:
            seen.add(id(one))
            todo.extend(inside(path, one, found))
    return found


def inside(path: str, one: Any, found: dict[str, str]) -> list[tuple[str, Any]]:
    """Note what something looks like; return what it holds."""
    held: list[tuple[str, Any]] = []
    if isinstance(one, torch.Tensor):
        value = float(one.detach().double().abs().sum()) if "grad_partitions" in path else ""
        found[path] = f"{tuple(one.shape)} {one.dtype} {one.grad is None} {value}"
    elif isinstance(one, dict | UserDict):
        found[f"{path}{{}}"] = repr(sorted(map(name, one)))
        held += [(f"{path}[{name(key)}]", value) for key, value in one.items()]
    elif isinstance(one, list | tuple | deque):
        found[f"{path}[]"] = repr(len(one))
        held += [(f"{path}[{index}]", value) for index, value in enumerate(one)]
    elif isinstance(one, set | frozenset):
        found[path] = repr(sorted(map(name, one)))
    if hasattr(one, "__dict__"):
        found[f"{path}."] = repr(sorted(vars(one)))
        held += [(f"{path}.{key}", value) for key, value in vars(one).items()]
    return held


def name(key: Any) -> str:
    return str(getattr(key, "ds_id", key)) if not isinstance(key, str) else key


def different(first: dict[str, str], second: dict[str, str]) -> list[str]:
    return [
        f"{path}: {first.get(path)} -> {second.get(path)}"
        for path in sorted(first.keys() | second.keys())
        if first.get(path) != second.get(path)
    ]


def attempt(what: Callable[[], None]) -> bool:
    """Whether it was interrupted."""
    try:
        what()
    except LostRankError:
        return True
    return False


class Trial:
    """One configuration's engine, and what was seen of it."""

    def __init__(self, case: Case) -> None:
        self.engine = build(*case)
        self.state = DeepSpeedState(self.engine)
        self.interrupted = InterruptedIteration(self.engine)
        self.new = reached(self.engine)
        self.unlike: list[str] = []
        self.traces = 0
        for _ in range(BEFORE):
            iterate(self.engine)
        self.part, self.meta = taken(self.state)
        self.undisturbed = self.trained()

    def trained(self) -> str:
        """What training to the end comes to."""
        while self.engine.global_steps < ALL:
            iterate(self.engine)
        return digest(taken(self.state))

    def go_back(self, where: str) -> None:
        self.interrupted.throw_away()
        self.traces += bool(self.interrupted.trace())
        found = different(self.new, reached(self.engine))
        if found:
            self.unlike.append(f"{where}: {found}")
        held = WholeSections.of(self.part, self.state.sections)
        self.state.restore(held, decode(self.meta))
        assert self.interrupted.retrace(self.interrupted.trace())


def tried(case: Case, counting: Counting) -> dict[str, Any]:
    trial = Trial(case)
    wrong: list[int] = []
    attempts = {"without a trace": 0, "with one": 0}

    def interrupt(which: str, n: int) -> None:
        counting.left = n
        attempts[which] += attempt(lambda: iterate(trial.engine))
        counting.left = -1
        trial.go_back(f"{which}, {n}")

    trial.go_back("at the end")
    for n in itertools.count(1):
        before = sum(attempts.values())
        interrupt("without a trace", n)
        if trial.trained() != trial.undisturbed:
            wrong.append(n)
        # DeepSpeed has a trace of the model after two iterations, and gathers ahead then.
        interrupt("with one", n)
        if sum(attempts.values()) == before:
            return {
                "attempts": attempts,
                "unlike": trial.unlike,
                "traces": trial.traces,
                "wrong": wrong,
            }
    raise AssertionError


def digest(of: tuple[torch.Tensor, bytes]) -> str:
    return hashlib.sha256(of[0].numpy().tobytes() + of[1]).hexdigest()


def main() -> None:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    torch.set_num_threads(1)
    _keep_to_the_network()
    Groups().install()
    dist.init_process_group("gloo")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    counting = Counting()
    said = {}
    for title, case in CASES.items():
        said[title] = tried(case, counting)
        gc.collect()
    Path(sys.argv[1]).write_text(json.dumps(said))
    os._exit(0)


main()

"""What a trainer would spend seconds to import, imported before there is a failure.

DeepSpeed 0.19 imports most of what `deepspeed.initialize` needs only inside it: 4.7 s of the 5 s
that it takes for a small model on two cores (docs/recovery.md). A trainer that is forked from a
process with all of it at hand starts in milliseconds.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from castor_runtime.agent.import_effects import import_effects
from castor_runtime.agent.script_files import held, hold

MODULES = (
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "deepspeed",
    "deepspeed.comm.mori",
    "deepspeed.comm.torch",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.stage3",
    "castor_runtime.trainer.checkpointer",
)


def preload(script: Path | None = None) -> None:
    """Import what every DeepSpeed trainer needs, and what `script` imports at its top.

    From then on this process, and all that are forked from it, run `script` as it is now.

    Nothing here may start a thread or touch a GPU: the process is forked afterwards (what the
    script's imports do of that: `castor_runtime.agent.import_effects`). An import of the script's
    that fails is left to the trainer, which will say so in its own log.
    """
    # Asking CUDA's runtime for devices would make every forked child unable to use them.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch  # noqa: PLC0415 - after the variable that it reads

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _uncollected(), compiled_when_called(), import_effects().held():
        for name in MODULES:
            importlib.import_module(name)
    _leave_arguments_unprinted()
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        _keep_to_the_network()
    if script is not None:
        with contextlib.suppress(OSError):  # the agent will say it
            files = held(script)
            hold(files)
            _import_as(script, files.sources[files.script])


@contextlib.contextmanager
def compiled_when_called() -> Iterator[None]:
    """Inside the `with`, have functions that modules compile by torch be compiled when called.

    DeepSpeed compiles some of its optimizer Muon where it is imported, which every engine does
    whatever its optimizer is: torch's compiler would be imported for nothing, a fifth of all.
    """
    torch: Any = importlib.import_module("torch")
    compiles = torch.compile

    def later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(later, **options)
        made = functools.cache(lambda: compiles(model, **options))

        @functools.wraps(model)
        def called(*given: Any, **named: Any) -> Any:
            return made()(*given, **named)

        return called

    vars(torch)["compile"] = later
    try:
        yield
    finally:
        vars(torch)["compile"] = compiles


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Inside the `with`, look for no garbage: imports leave hardly any, and make many objects."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _leave_arguments_unprinted() -> None:
    """Keep two constructors of ZeRO-3 from formatting all their arguments for a silent log line.

    The arguments hold the model: the text of every parameter is made at each start, and thrown
    away (0.15 s for 28 parameters on two busy cores, more with every layer).
    """
    for name in ("deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.parameter_offload"):
        vars(importlib.import_module(name))["locals"] = dict


def _keep_to_the_network() -> None:
    """Switch off DeepSpeed's shared-memory collectives of CPUs.

    They would be compiled at the first start, need a compiler, and take ranks of one computer for
    one machine, which they are not where machines are emulated.
    """
    # Not `import deepspeed.comm.torch as backend`: that name is torch itself in deepspeed.comm.
    backend = importlib.import_module("deepspeed.comm.torch")
    vars(backend)["build_shm_op"] = lambda: None


def _import_as(script: Path, source: bytes) -> None:
    try:
        tree = ast.parse(source, filename=str(script))
    except (SyntaxError, ValueError):
        return
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
    sys.path.insert(0, str(script.resolve().parent))
    try:
        import_effects().import_all(script, names)
    finally:
        sys.path.pop(0)

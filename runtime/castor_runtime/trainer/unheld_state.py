"""Find what decides how training goes on and is not checkpointed, and say so by name.

Looked for once, while the first iterations of a job end: what a script does then it does ever
after. Objects are found by what they are, among all that are alive in the process (a pass over the
garbage collector's list, about 0.1 s); nothing is read of them but what says whose they are.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain, compress, repeat, starmap
from operator import call
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data.dataloader import _BaseDataLoaderIter

from castor_runtime.state.meta import encode
from castor_runtime.trainer.optimizer_state import OptimizerState

_DEPTH = 5
"""How deep an object may lie in what is held and still count as held."""

_PAGE = "see docs/your-script.md"


_HAS_GENERATOR = "castor_has_generator"


def _note_generators() -> None:
    """Have every iterator of a DataLoader know whether its loader has a generator of its own.

    torch's iterators forget their loader, and the loader may be gone when they are looked at.
    """
    plain = _BaseDataLoaderIter.__init__

    @functools.wraps(plain)
    def noting(self: Any, loader: Any) -> None:
        plain(self, loader)
        setattr(self, _HAS_GENERATOR, loader.generator is not None)

    if not hasattr(plain, "__wrapped__"):
        setattr(_BaseDataLoaderIter, "__init__", noting)  # noqa: B010 - mypy: no method is set


_note_generators()


class UnheldStateWarning(RuntimeWarning):
    """Something that training depends on is in no checkpoint."""


class ForeignStateError(ValueError):
    """What was given in `state=` cannot be held through its `state_dict`."""


class SecondEngineError(ValueError):
    """Another engine trains in this process, and no checkpoint holds it."""


def refuse_foreign_state(user: Mapping[str, Any]) -> None:
    """Refuse in `state=` what its `state_dict` does not hold.

    Raises:
        ForeignStateError: an engine, an optimizer of ZeRO, or a module that ZeRO-3 partitioned.
    """
    for name, held in user.items():
        if isinstance(held, _engine_types()):
            raise ForeignStateError(
                f"state[{name!r}] is a DeepSpeed engine: its state_dict() holds no partition of "
                "parameters or moments. Checkpointer(engine) holds the one engine that trains; of "
                f"others nothing is held ({_PAGE})"
            )
        if type(held).__module__.startswith("deepspeed.runtime.zero"):
            raise ForeignStateError(
                f"state[{name!r}] is a ZeRO optimizer, which Checkpointer(engine) holds by itself: "
                "leave it out"
            )
        modules = held.modules() if isinstance(held, torch.nn.Module) else ()
        if any(hasattr(p, "ds_id") for m in modules for p in m.parameters(recurse=False)):
            raise ForeignStateError(
                f"state[{name!r}] is a module whose parameters ZeRO-3 has partitioned: its "
                "state_dict() holds empty placeholders. Modules within the engine are held by "
                "themselves; build others outside of deepspeed.zero.Init and of the engine"
            )


class FirstIterations:
    """Watches the first two iterations of a job.

    Made when `resume` has returned at a job's start; its `iteration_ended` is called after each.

    Args:
        engine: DeepSpeed's.
        optimizer: what is held of its optimizer.
        user: the user's state, by name.
        tell: called with each warning, for those who do not read this trainer's log.

    Raises:
        SecondEngineError: another engine trains in this process.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: OptimizerState,
        user: Mapping[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._user = user
        self._tell = tell
        self._ended = 0
        self._told: set[str] = set()
        self._moves = _Moves(engine, user)
        _refuse_second_engine(engine)

    def iteration_ended(self) -> bool:
        """Warn of what is seen now; return whether all has been seen.

        Raises:
            SecondEngineError: another engine trains in this process.
        """
        self._ended += 1
        self._moves.iteration_ended()
        if self._ended == 1:
            _refuse_second_engine(self._engine)
            for said in _unheld_objects(self._engine, self._user):
                self._warn(said)
        for path, kind in self._optimizer.unheld():
            self._warn(
                f"the optimizer's attribute {path} ({kind}) changes from step to step, and no "
                "checkpoint holds it: keep it as a number or a small tensor, or define state_dict "
                "and load_state_dict on the optimizer"
            )
        if self._ended > 1:
            for name in self._moves.late:
                self._warn(
                    f"state[{name!r}] ({type(self._user[name]).__name__}) changes after "
                    "checkpointer.step() and before the next batch: after a recovery that change "
                    "is lost. Change it before checkpointer.step()"
                )
        return self._ended > 2

    def _warn(self, said: str) -> None:
        if said not in self._told:
            self._told.add(said)
            self._tell(f"{said} ({_PAGE})")
            warnings.warn(f"castor: {said} ({_PAGE})", UnheldStateWarning, stacklevel=4)


class _Moves:
    """Which of the user's states move between `checkpointer.step()` and the next forward pass.

    One that moves before the very first pass, too, moves at the loop's head: a recovery begins
    there, so nothing is lost.
    """

    def __init__(self, engine: torch.nn.Module, user: Mapping[str, Any]) -> None:
        self._user = user
        self._before = _digests(user)
        self._at_head: set[str] | None = None
        self.late: list[str] = []
        self._waits = True
        self._hook = engine.register_forward_pre_hook(self._forward) if user else None

    def iteration_ended(self) -> None:
        if self._hook is not None:
            self._before = _digests(self._user)
            self._waits = True

    def _forward(self, *_: Any) -> None:
        if not self._waits or self._hook is None:
            return
        self._waits = False
        now = _digests(self._user)
        moved = {name for name in now if now[name] != self._before[name]}
        if self._at_head is None:
            self._at_head = moved
            return
        self.late = sorted(moved - self._at_head)
        self._hook.remove()
        self._hook = None


def _digests(user: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        name: hashlib.sha256(encode({"state": held.state_dict()})).digest()
        for name, held in user.items()
    }


def _refuse_second_engine(engine: Any) -> None:
    for other in _alive(_engine_types()):
        if other is not engine and hasattr(getattr(other, "optimizer", None), "optimizer"):
            module = type(other.module).__name__
            count = sum(1 for _ in other.module.parameters())
            raise SecondEngineError(
                f"another DeepSpeed engine trains in this process ({module}, {count} parameters), "
                "and Castor checkpoints one: its state would be lost at the first failure. Put "
                "both models into one engine (one module that holds them, a parameter group each), "
                f"or give the other no optimizer if it only computes ({_PAGE})"
            )


def _unheld_objects(engine: Any, user: Mapping[str, Any]) -> Iterator[str]:
    held = _held_ids(engine, user)
    schedules = (LRScheduler, *_deepspeed_schedules())
    kinds = (
        *schedules,
        torch.optim.Optimizer,
        torch.amp.GradScaler,
        AveragedModel,
        _BaseDataLoaderIter,
    )
    for item in _alive(kinds):
        if id(item) in held:
            continue
        name = type(item).__name__
        if isinstance(item, schedules):
            yield (
                f"the learning-rate schedule {name} is not checkpointed: after a recovery it "
                "starts anew. Give it to deepspeed.initialize(lr_scheduler=...), or to "
                'Checkpointer(engine, state={"schedule": ...})'
            )
        elif isinstance(item, torch.optim.Optimizer):
            if item.state:
                yield (
                    f"the optimizer {name} trains beside the engine and is not checkpointed: give "
                    "it and its model to Checkpointer(engine, state={...})"
                )
        elif isinstance(item, torch.amp.GradScaler):
            if item.is_enabled():
                yield (
                    f"the loss scale of {name} is not checkpointed: give it to "
                    'Checkpointer(engine, state={"scaler": ...})'
                )
        elif isinstance(item, AveragedModel):
            yield (
                f"the averaged weights of {name} are not checkpointed: make it a part of the "
                'engine\'s module, or give it to Checkpointer(engine, state={"average": ...})'
            )
        else:
            yield from _unheld_data(item, user)


def _unheld_data(iterator: Any, user: Mapping[str, Any]) -> Iterator[str]:
    workers = int(getattr(iterator, "_num_workers", 0))
    what = f"a DataLoader(num_workers={workers}) of {type(iterator._dataset).__name__}"
    if not getattr(iterator, _HAS_GENERATOR, True):
        yield (
            f"{what} takes its seed from torch's own generator each time it is iterated: after a "
            "recovery within an epoch the order of a random sampler, what workers draw, and all "
            "numbers drawn later are others. Give it "
            "generator=torch.Generator().manual_seed(epoch), or itself to "
            "Checkpointer(engine, state={...}) if it has a state_dict"
        )
    if not user:
        yield (
            f"{what} is read, and its position is not checkpointed: after a recovery data begin "
            "anew. Give epoch and batches read to Checkpointer(engine, state={...})"
        )


def _held_ids(engine: Any, user: Mapping[str, Any]) -> set[int]:
    """Return the ids of what is held, and of what lies within it."""
    zero = engine.optimizer
    roots = [
        engine.lr_scheduler,
        zero.optimizer,
        getattr(zero, "torch_autocast_gradscaler", None),
        engine.client_optimizer,
        engine.basic_optimizer,
        *engine.module.modules(),
        *user.values(),
    ]
    held: set[int] = set()
    layer = [root for root in roots if root is not None]
    for _ in range(_DEPTH):
        layer = [item for item in layer if id(item) not in held]
        held.update(map(id, layer))
        layer = [part for item in layer for part in _within(item)]
    return held


def _within(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if isinstance(item, torch.nn.Module):
        return list(item.modules())
    if isinstance(item, torch.Tensor | type) or callable(item):
        return []
    return list(getattr(item, "__dict__", {}).values())


def _alive(kinds: tuple[type, ...]) -> list[Any]:
    found = _of_kinds(kinds)
    if len(found) > 1:
        del found
        gc.collect()  # so that what only awaits it is not blamed
        found = _of_kinds(kinds)
    return found


def _of_kinds(kinds: tuple[type, ...]) -> list[Any]:
    """Return the objects of these types, and of those derived from them.

    The collector's list has tuples in it that other threads are about to fill. Were one of these
    to go on while the list is held, Python would take its tuple for one that others have, and fail
    it with a SystemError ("tupleobject.c: bad argument to internal function"). So the list comes
    and goes within one call, `list(...)`: another thread has its turn between two steps of Python,
    and there is none within.
    """
    wanted = set(kinds)
    derived = list(kinds)
    for kind in derived:  # grows while it is walked
        new = set[type](kind.__subclasses__()) - wanted
        wanted |= new
        derived += new
    is_wanted = wanted.__contains__
    collects = gc.isenabled()
    gc.disable()  # it might run something of Python's within the call
    try:
        # Nothing happens before `list` asks. It is compress(objects, map(is_wanted, map(type,
        # objects))), where `objects` must not have a name.
        twice = map(repeat, map(gc.get_objects, (None,)), (2,))
        with_types = map(partial(map, call, (iter, partial(map, type))), twice)
        with_choice = map(partial(map, call, (iter, partial(map, is_wanted))), with_types)
        return list(chain.from_iterable(starmap(compress, with_choice)))
    finally:
        if collects:
            gc.enable()


def _engine_types() -> tuple[type, ...]:
    module = sys.modules.get("deepspeed.runtime.engine")
    return (module.DeepSpeedEngine,) if module is not None else ()


def _deepspeed_schedules() -> tuple[type, ...]:
    module = sys.modules.get("deepspeed.runtime.lr_schedules")
    names = ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
    return tuple(getattr(module, name) for name in names if hasattr(module, name))

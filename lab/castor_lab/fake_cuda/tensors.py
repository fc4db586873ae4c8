"""Tensors of the fake GPU: each operation is queued on a stream, and its uses of memory are noted.

A subclass of torch's own: views, copies and arithmetic are torch's, done at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from castor_lab.fake_cuda.memory import Memory
from castor_lab.fake_cuda.streams import Stream


class Watcher(Protocol):
    """What tensors ask of the GPU whose memory they are in, or are copied to and from."""

    device: torch.device
    memory: Memory

    def current_stream(self) -> Stream:
        """Return the calling thread's."""
        ...

    def launch(
        self, what: str, *, reads: Sequence[torch.Tensor] = (), writes: Sequence[torch.Tensor] = ()
    ) -> None:
        """Queue what uses these tensors."""
        ...

    def host_uses(
        self, what: str, *, reads: Sequence[torch.Tensor] = (), writes: Sequence[torch.Tensor] = ()
    ) -> None:
        """Have the calling thread use memory of the processor."""
        ...


_WAITING = {"item", "tolist", "equal", "__bool__", "__float__", "__int__", "cpu", "numpy"}
"""Operations whose result the processor looks at: it waits for it."""

_DEVICE: Any = torch.Tensor.device


class Tensor(torch.Tensor):
    """A tensor in memory that is watched: the fake GPU's, or the processor's."""

    gpu: Watcher

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        _types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do it, and note what it used."""
        named = dict(kwargs or {})
        (cuda,) = {one.gpu for one in _tensors((args, named)) if isinstance(one, Tensor)}
        return _run(cuda, func, args, named)


def watched(cuda: Watcher, tensor: torch.Tensor) -> Tensor:
    """Return the tensor as one whose uses are noted."""
    made = tensor.as_subclass(Tensor)
    made.gpu = cuda
    return made


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return its first address, and the one after its last."""
    with torch._C.DisableTorchFunctionSubclass():
        if tensor.numel() == 0:
            return tensor.data_ptr(), tensor.data_ptr()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        low = tensor.data_ptr()
        return low, low + (last + 1) * tensor.element_size()


def _run(cuda: Watcher, func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", "")
    if func == _DEVICE.__get__:
        return cuda.device if cuda.memory.holds(extent(args[0])[0]) else torch.device("cpu")
    given = list(_tensors((args, named)))
    on_gpu = any(cuda.memory.holds(extent(one)[0]) for one in given)
    changes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if name in _WAITING or changes:
        _note(cuda, name, given[1:] if changes else given, given[:1] if changes else [], on_gpu)
    if on_gpu and (name in _WAITING or _copies_and_waits(cuda, name, given, named)):
        cuda.current_stream().synchronize()
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **named)
    if changes:
        return args[0]
    if name in _WAITING or not isinstance(result, torch.Tensor):
        return result
    if any(_same_memory(result, one) for one in given):
        return watched(cuda, result)
    return _as_new(cuda, name, given, result) if on_gpu else result


def _as_new(
    cuda: Watcher, name: str, given: Sequence[torch.Tensor], result: torch.Tensor
) -> Tensor:
    """Put what an operation has made into memory of the GPU."""
    with torch._C.DisableTorchFunctionSubclass():
        size_bytes = result.numel() * result.element_size()
        made = cuda.memory.allocate(size_bytes).view(result.dtype).view(result.shape)
        made.copy_(result)
    _note(cuda, name, given, [made], on_gpu=True)
    return watched(cuda, made)


def _copies_and_waits(
    cuda: Watcher, name: str, given: Sequence[torch.Tensor], named: Mapping[str, Any]
) -> bool:
    both = name == "copy_" and not named.get("non_blocking")
    return both and len({cuda.memory.holds(extent(one)[0]) for one in given}) == 2


def _note(
    cuda: Watcher,
    name: str,
    reads: Sequence[torch.Tensor],
    writes: Sequence[torch.Tensor],
    on_gpu: bool,
) -> None:
    use = cuda.launch if on_gpu else cuda.host_uses
    use(name, reads=reads, writes=writes)


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _tensors(given: Any) -> Iterator[torch.Tensor]:
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, Mapping):
        for one in given.values():
            yield from _tensors(one)
    elif isinstance(given, list | tuple):
        for one in given:
            yield from _tensors(one)

"""A group in which nobody else is yet: a spare builds its engine with it.

Collectives return at once, as if every other rank had given what this one gives. Then what a script
makes of the answers (a size that all agree on, an object that all send) is well formed. What it
comes to is replaced: a spare takes a lost rank's state when it takes its place.
"""

# ruff: noqa: D102 - the methods are those of torch's ProcessGroup and Work, and of Inside
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Work

from castor_runtime.trainer.swap.errors import CannotSwapError


class Done(Work):
    """The handle of a collective that is over.

    Args:
        outputs: its result.
    """

    def __init__(self, outputs: list[Any]) -> None:
        super().__init__()
        self._outputs = outputs

    def wait(self, _timeout: Any = None) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def block_current_stream(self) -> None:
        pass

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def result(self) -> list[Any]:
        return self._outputs

    def get_future(self) -> torch.futures.Future[Any]:
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result(self._outputs)
        return future


class LoneRank:
    """Does a group's collectives for a rank that is alone; see `Inside`.

    Args:
        rank: of this process in the group.
        size: that the group will have.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        self._begun = 0
        self.operations = self

    def connect(self) -> None:
        pass

    def close(self) -> None:
        pass

    def drop(self) -> None:
        pass

    def _get_backend(self, device: torch.device) -> Any:
        raise RuntimeError(f"the group has no backend for {device}: it is not connected yet")

    def _get_sequence_number_for_group(self) -> int:
        return self._begun

    def _set_sequence_number_for_group(self) -> None:
        pass

    def set_timeout(self, _timeout: Any) -> None:
        pass

    def barrier(self, *_arguments: Any, **_named: Any) -> Work:
        return self._done([])

    def monitored_barrier(self, *_arguments: Any, **_named: Any) -> None:
        pass

    def broadcast(self, tensors: Any, *_arguments: Any, **_named: Any) -> Work:
        return self._done(_listed(tensors))

    def allreduce(self, tensors: Any, opts: Any = dist.ReduceOp.SUM, *_arguments: Any) -> Work:
        for tensor in _listed(tensors):
            _reduce(tensor, opts, self._size)
        return self._done(_listed(tensors))

    allreduce_coalesced = allreduce

    def reduce(self, tensors: Any, opts: Any, *arguments: Any) -> Work:
        # `opts` is a root where it is called with a tensor; the operation follows it.
        operation = opts if hasattr(opts, "reduceOp") else [*arguments, dist.ReduceOp.SUM][0]
        return self.allreduce(tensors, operation)

    def allgather(self, outputs: Any, inputs: Any, *_arguments: Any, **_named: Any) -> Work:
        if isinstance(inputs, torch.Tensor):
            outputs, inputs = [outputs], [inputs]
        for slots, mine in zip(outputs, inputs, strict=True):
            for slot in slots:
                slot.copy_(mine)
        return self._done(outputs)

    def allgather_coalesced(self, outputs: Any, inputs: Any, *_arguments: Any) -> Work:
        for slots in outputs:
            self.allgather([[slot] for slot in slots], inputs)
        return self._done(outputs)

    def all_gather_single(self, output: Any, mine: Any, *_arguments: Any, **_named: Any) -> Work:
        output.view(self._size, -1).copy_(mine.reshape(1, -1).expand(self._size, -1))
        return self._done([output])

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, *_arguments: Any) -> Work:
        for output, mine in zip(outputs, inputs, strict=True):
            self.all_gather_single(output, mine)
        return self._done(outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def gather(self, outputs: Any, inputs: Any, *_arguments: Any, **_named: Any) -> Work:
        if not outputs:  # this rank is not the root
            return self._done([])
        return self.allgather(outputs, inputs)

    def scatter(self, outputs: Any, inputs: Any, *_arguments: Any, **_named: Any) -> Work:
        if inputs:  # this rank is the root
            if isinstance(outputs, torch.Tensor):
                outputs, inputs = [outputs], [inputs]
            for output, slots in zip(outputs, inputs, strict=True):
                output.copy_(slots[self._rank])
        return self._done(_listed(outputs))

    def reduce_scatter(
        self, outputs: Any, inputs: Any, opts: Any = dist.ReduceOp.SUM, *_arguments: Any
    ) -> Work:
        if isinstance(outputs, torch.Tensor):
            outputs, inputs = [outputs], [inputs]
        for output, slots in zip(outputs, inputs, strict=True):
            output.copy_(slots[self._rank])
            _reduce(output, opts, self._size)
        return self._done(outputs)

    def reduce_scatter_single(
        self, output: Any, given: Any, opts: Any = dist.ReduceOp.SUM, *_arguments: Any
    ) -> Work:
        output.view(-1).copy_(given.reshape(self._size, -1)[self._rank])
        _reduce(output, opts, self._size)
        return self._done([output])

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: Any, inputs: Any, opts: Any = dist.ReduceOp.SUM, *_arguments: Any
    ) -> Work:
        for output, given in zip(outputs, inputs, strict=True):
            self.reduce_scatter_single(output, given, opts)
        return self._done(outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def alltoall(self, outputs: Any, inputs: Any, *_arguments: Any, **_named: Any) -> Work:
        mine = inputs[self._rank]
        for output in outputs:
            if output.numel() != mine.numel():
                raise CannotSwapError(_UNEQUAL)
            output.copy_(mine)
        return self._done(outputs)

    def all_to_all_single(
        self, output: Any, given: Any, output_sizes: Any, input_sizes: Any, *_arguments: Any
    ) -> Work:
        if output_sizes or input_sizes:
            sizes = {*output_sizes, *input_sizes}
            if len(sizes) > 1:
                raise CannotSwapError(_UNEQUAL)
        mine = given.reshape(self._size, -1)[self._rank]
        output.view(self._size, -1).copy_(mine.expand(self._size, -1))
        return self._done([output])

    alltoall_base = all_to_all_single

    def __getattr__(self, name: str) -> Any:
        raise CannotSwapError(f"{name} asks another rank, and this group is not connected yet")

    def _done(self, outputs: Sequence[Any]) -> Work:
        self._begun += 1
        return Done(list(outputs))


_UNEQUAL = (
    "an all-to-all of pieces of several sizes asks other ranks, and this group is not connected yet"
)


def _listed(tensors: Any) -> list[Any]:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _reduce(tensor: torch.Tensor, opts: Any, size: int) -> None:
    """Reduce `size` tensors that are all equal to this one, in place."""
    operation = getattr(opts, "reduceOp", opts)
    if operation == dist.ReduceOp.SUM:
        tensor.mul_(size)
    elif operation == dist.ReduceOp.PRODUCT:
        tensor.pow_(size)
    elif operation == dist.ReduceOp.BXOR and size % 2 == 0:
        tensor.zero_()

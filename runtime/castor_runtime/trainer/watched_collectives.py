"""DeepSpeed's collectives, watched: who calls one, who waits for it, and when.

DeepSpeed sends everything through one backend object, `deepspeed.comm.comm.cdb`; its collectives
are wrapped. Whether all ranks take part in one is told by the group that it is called with.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist

_COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_base",
    "all_gather_coalesced",
    "all_to_all_single",
    "all_to_all",
    "gather",
    "scatter",
)

Record = TypeVar("Record")
"""What is kept of a collective."""


class WatchedCollectives(ABC, Generic[Record]):
    """Wraps a backend's collectives; a subclass notes what it is told of each."""

    def __init__(self) -> None:
        self._wrapped: list[tuple[Any, str]] = []
        self._passed: Callable[[Any], None] = lambda _work: None

    def tell_passed(self, passed: Callable[[Any], None]) -> None:
        """Have `passed` called after each collective of all ranks was called, in that thread.

        It gets the collective's handle; None for one that was waited for within its call.
        """
        self._passed = passed

    def install(self, backend: Any) -> None:
        """Wrap the collectives of `backend`; `remove` takes the wrappers away."""
        for name in _COLLECTIVES:
            if hasattr(backend, name):
                setattr(backend, name, self._watching(name, getattr(backend, name)))
                self._wrapped.append((backend, name))

    def remove(self) -> None:
        """Undo `install`."""
        for backend, name in self._wrapped:
            delattr(backend, name)
        self._wrapped.clear()

    @abstractmethod
    def _begin(self, op: str, size_bytes: int, *, on_cpu: bool, with_all: bool) -> Record:
        """Note that a collective is about to be called."""

    @abstractmethod
    def _end(self, record: Record) -> None:
        """Note that it is over; may be told more than once, and in any thread."""

    @abstractmethod
    def _blocked(self, record: Record) -> None:
        """Note that it was waited for within its call; `_end` has been told."""

    @abstractmethod
    def _waits(self, record: Record) -> None:
        """Note that the calling thread is about to wait for it, the first time."""

    @abstractmethod
    def _resumes(self, record: Record) -> None:
        """Note that it has waited; `_end` has been told."""

    def _watching(self, op: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def watched(*arguments: Any, **named: Any) -> Any:
            given = (*arguments, *named.values())
            on_cpu = any(map(_on_cpu, given))
            with_all = not any(map(_is_of_some, given))
            size_bytes = max(map(_bytes_in, given), default=0)
            record = self._begin(op, size_bytes, on_cpu=on_cpu, with_all=with_all)
            try:
                handle = collective(*arguments, **named)
            except BaseException:
                self._end(record)
                raise
            is_awaited = handle is None or not hasattr(handle, "wait")
            if is_awaited:
                self._end(record)
                self._blocked(record)
            elif on_cpu:
                _when_over(handle, functools.partial(self._end, record))
            if with_all:
                self._passed(None if is_awaited else handle)
            return handle if is_awaited else _Watched(handle, record, self)

        return watched


class _Watched(Generic[Record]):
    """A collective's handle that says when it was waited for; else the handle itself."""

    def __init__(self, handle: Any, record: Record, watch: WatchedCollectives[Record]) -> None:
        self._handle = handle
        self._record = record
        self._watch = watch
        self._has_waited = False

    def wait(self, *arguments: Any, **named: Any) -> Any:
        first, self._has_waited = not self._has_waited, True
        if first:
            self._watch._waits(self._record)
        try:
            return self._handle.wait(*arguments, **named)
        finally:
            self._watch._end(self._record)
            if first:
                self._watch._resumes(self._record)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def _when_over(handle: Any, ended: Callable[[], None]) -> None:
    """Have `ended` called when the collective is over, if its work has a future."""
    try:
        future = handle.get_future()
    except (AttributeError, RuntimeError):
        return  # its end is then known when it has been waited for
    future.then(lambda _: ended())


def _is_of_some(given: Any) -> bool:
    """Whether it is a group that not all ranks are in."""
    if given is dist.GroupMember.NON_GROUP_MEMBER:
        return True
    return isinstance(given, dist.ProcessGroup) and given.size() < dist.get_world_size()


def _bytes_in(given: Any) -> int:
    if isinstance(given, torch.Tensor):
        return given.numel() * given.element_size()
    if isinstance(given, list | tuple):
        return sum(map(_bytes_in, given))
    return 0


def _on_cpu(given: Any) -> bool:
    tensors: Iterable[Any] = given if isinstance(given, list | tuple) else (given,)
    return any(isinstance(one, torch.Tensor) and one.device.type == "cpu" for one in tensors)

"""How a trainer joins its generation: its counters, its groups, and its way to send."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from castor_policy.job_options import NCCL
from castor_runtime.arena import ControlBlock, TrainerPhase
from castor_runtime.named import named
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.cuda_clock import CudaClock
from castor_runtime.trainer.cuda_device import CudaCapture, CudaDevice, post_nccl
from castor_runtime.trainer.device import CpuDevice, Device, Post
from castor_runtime.trainer.idle_spans import Gate, IdleSpans
from castor_runtime.trainer.launches import ByPosition, ByTime, Launches
from castor_runtime.trainer.nccl_order import check_nccl
from castor_runtime.trainer.stream_spans import StreamSpans
from castor_runtime.trainer.stripes import streams_each
from castor_runtime.trainer.swap.replaceable_group import ReplaceableGroup
from castor_runtime.trainer.tcp_streams import TcpStreams, own_address


def open_counters(settings: TrainerSettings) -> ControlBlock:
    """Return its agent's control block, in which this trainer's counters are in phase STARTING.

    Raises:
        ValueError: the counters are of another run.
    """
    block = ControlBlock.open(settings.control)
    if block.run != settings.run:
        raise ValueError(
            f"{settings.control} is of run {block.run}, this trainer of run {settings.run}: start "
            "trainers by `castor agent`"
        )
    if not settings.is_spare:
        block.rank(settings.local_rank).phase = TrainerPhase.STARTING
    return block


NewGroup = Callable[[str, timedelta], dist.ProcessGroup]
"""Makes a group of all ranks, given a backend and how long its transfers may take."""


def new_group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    """Return a process group of all trainers; every one of them makes it at the same point."""
    group = dist.new_group(backend=backend, timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def training_timeout_s() -> float:
    """Return how long training's own collectives wait for a rank that does not come, in seconds."""
    world = dist.group.WORLD
    assert world is not None, "the engine has made the default group"
    if isinstance(world, ReplaceableGroup):
        return world.timeout.total_seconds()
    backends: list[Any] = [world._get_backend(device) for device in world._device_types]
    return max(float(one.options._timeout.total_seconds()) for one in backends)


@dataclass(frozen=True, slots=True)
class Exchanging:
    """What checkpoints are exchanged by.

    Attributes:
        post: starts a round.
        device: where the pieces lie that are sent.
        group: of all ranks, which nothing else uses; None: they do not go over one.
        end: ends with an error whatever is under way; from any thread.
        close: gives up what was made for it, when nothing is under way.
    """

    post: Post
    device: torch.device
    group: dist.ProcessGroup | None = None
    end: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


def open_exchange(
    settings: TrainerSettings,
    device: torch.device,
    control: dist.ProcessGroup,
    make_group: NewGroup,
    timeout: timedelta,
    gives_up: Callable[[], bool] = lambda: False,
) -> Exchanging:
    """Make what checkpoints are exchanged by; every rank does so at the same point.

    Args:
        settings: of the trainer.
        device: where the live state is.
        control: a gloo group of all ranks.
        make_group: makes another one.
        timeout: of a transfer.
        gives_up: says that the generation is over.

    Raises:
        ValueError: the job asks for NCCL, which cannot be used here.
        StreamError: a peer cannot be reached.
    """
    if settings.traffic.send == NCCL and not settings.device.maker:
        check_nccl(device, settings.traffic.scheme)
        group = make_group("nccl", timeout)
        return Exchanging(partial(post_nccl, group), device, group)
    count = torch.tensor([streams_each(settings.ranks_per_machine, len(os.sched_getaffinity(0)))])
    dist.all_reduce(count, dist.ReduceOp.MIN, control)
    streams = TcpStreams(
        control,
        settings.holders(),
        [rank for rank, _ in settings.sources()],
        int(count),
        address=own_address(),
        timeout_s=timeout.total_seconds(),
        gives_up=gives_up,
    )
    return Exchanging(streams.post, torch.device("cpu"), end=streams.end, close=streams.close)


OpenExchange = Callable[
    [
        TrainerSettings,
        torch.device,
        dist.ProcessGroup,
        NewGroup,
        timedelta,
        Callable[[], bool],
    ],
    Exchanging,
]
"""`open_exchange`, or what stands for it where ranks share a process."""

Spans = IdleSpans | StreamSpans
"""What watches training's collectives."""


def choose_spans(device: torch.device, gate: Gate) -> Spans:
    """Return what watches collectives: by the host's clock, or where a GPU does them by the GPU's.

    Args:
        device: where the live state is.
        gate: is told of their pauses.
    """
    return StreamSpans(gate, CudaClock(device)) if device.type == "cuda" else IdleSpans(gate)


def choose_launches(device: Device, gate: Gate) -> Launches:
    """Return what launches the rounds of a checkpoint: in one order on all ranks, where asked for.

    Args:
        device: asks for it.
        gate: knows which idle span has begun.
    """
    return ByPosition(gate, device.follow_training) if device.launches_in_order else ByTime(gate)


def choose_device(
    settings: TrainerSettings, device: torch.device, gate: Gate, exchanging: Exchanging
) -> Device:
    """Return the way by which bytes leave training's memory.

    Args:
        settings: of the trainer.
        device: where the live state is.
        gate: is open while checkpoint traffic may go on.
        exchanging: what by.
    """
    traffic = settings.traffic
    sub_buffer_bytes = traffic.buffer_bytes // traffic.sub_buffers or traffic.chunk_bytes
    if settings.device.maker:
        maker = named(settings.device.maker)
        stand_in: Device = maker(settings, gate, exchanging, sub_buffer_bytes)
        return stand_in
    if device.type != "cuda":
        return CpuDevice(exchanging.post)
    if traffic.send == NCCL:
        assert exchanging.group is not None, "it is NCCL's"
        return CudaDevice(exchanging.group, device, gate, sub_buffer_bytes)
    return CudaCapture(exchanging.post, device, sub_buffer_bytes)

"""How a trainer joins its generation: its counters, its groups, and its way to send."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from castor_runtime.arena import ControlBlock, RankControl, TrainerPhase
from castor_runtime.named import named
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.cuda_device import CudaDevice
from castor_runtime.trainer.device import CpuDevice, Device
from castor_runtime.trainer.idle_spans import Gate


def open_counters(settings: TrainerSettings) -> RankControl:
    """Return this trainer's counters in its agent's control block, in phase STARTING.

    Raises:
        ValueError: the counters are of another run.
    """
    block = ControlBlock.open(settings.control)
    if block.run != settings.run:
        raise ValueError(
            f"{settings.control} is of run {block.run}, this trainer of run {settings.run}: start "
            "trainers by `castor agent`"
        )
    counters = block.rank(settings.local_rank)
    counters.phase = TrainerPhase.STARTING
    return counters


NewGroup = Callable[[str, timedelta], dist.ProcessGroup]
"""Makes a group of all ranks, given a backend and how long its transfers may take."""


def new_group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    """Return a process group of all trainers; every one of them makes it at the same point."""
    group = dist.new_group(backend=backend, timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def choose_device(
    settings: TrainerSettings, device: torch.device, gate: Gate, group: dist.ProcessGroup
) -> Device:
    """Return the way by which bytes leave training's memory.

    Args:
        settings: of the trainer.
        device: where the live state is.
        gate: is open while checkpoint traffic may go on.
        group: of the exchange.
    """
    traffic = settings.traffic
    sub_buffer_bytes = traffic.buffer_bytes // traffic.sub_buffers or traffic.chunk_bytes
    if device.type == "cuda":
        return CudaDevice(group, device, gate, sub_buffer_bytes)
    if settings.device.maker:
        stand_in: Device = named(settings.device.maker)(settings, gate, group, sub_buffer_bytes)
        return stand_in
    return CpuDevice(group)

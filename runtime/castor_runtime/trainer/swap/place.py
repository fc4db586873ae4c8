"""A spare's engine, which was built as one rank, becomes another rank's."""

from __future__ import annotations

from typing import Any

import deepspeed.comm as dist

from castor_runtime.trainer.swap.errors import CannotSwapError


def take_place(engine: Any) -> None:
    """Make the engine that of the rank that its groups now say; its state is restored afterwards.

    Of DeepSpeed 0.19.8 these keep a rank that they were built with: the engine, each parameter
    (which part of it is this rank's, and so how much of that is padding) and the optimizer's list
    of paddings. Everything else asks its group each time. (`deepspeed.zero.Init` keeps one that
    only its own messages show.)

    Args:
        engine: that was built as another rank, or as this one.

    Raises:
        CannotSwapError: it writes files for rank 0 to which it was built, or not.
    """
    rank = dist.get_rank()
    if rank != engine.global_rank and engine.monitor.enabled:
        raise CannotSwapError(
            f"a spare that was built as rank {engine.global_rank} cannot become rank {rank}: "
            "DeepSpeed's monitor has opened its files as the former"
        )
    engine.global_rank = rank
    for parameter in engine.module.parameters():
        parameter.ds_zero_partition_rank = dist.get_rank(group=parameter.ds_process_group)
    zero = engine.optimizer
    zero.groups_padding = [
        [
            parameter.padding_size()
            if _is_last(dist.get_rank(group), dist.get_world_size(group))
            else 0
            for parameter in parameters
        ]
        for group, parameters in zip(zero.sub_group_process_groups, zero.fp16_groups, strict=True)
    ]


def _is_last(rank: int, size: int) -> bool:
    return rank == size - 1

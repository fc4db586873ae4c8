"""How a trainer joins: how long its groups wait, and what checkpoints are exchanged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from castor_policy.job_options import TrafficOptions
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.device import CpuDevice
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.joining import (
    choose_device,
    new_group,
    open_exchange,
    training_timeout_s,
)
from castor_runtime.trainer.tcp_streams import TcpStreams

CPU = torch.device("cpu")
SETTINGS = TrainerSettings(
    job="j",
    run="0" * 16,
    rank=0,
    machine=0,
    local_rank=0,
    generation=1,
    ranks_per_machine=1,
    replicas=((0,),),
    socket="",
    control="",
    started_ns=0,
)


@pytest.fixture(params=["gloo", "cpu:gloo,cuda:gloo"])
def waits_s(request: pytest.FixtureRequest) -> Iterator[float]:
    """A default group that its user lets wait for longer than DeepSpeed's 600 s."""
    timeout = timedelta(seconds=1234)
    store = dist.HashStore()
    dist.init_process_group(request.param, store=store, rank=0, world_size=1, timeout=timeout)
    yield timeout.total_seconds()
    dist.destroy_process_group()


def test_checkpoints_wait_for_a_peer_as_long_as_training_does(waits_s: float) -> None:
    assert training_timeout_s() == waits_s
    timeout = timedelta(seconds=training_timeout_s())
    control = new_group("gloo", timeout)
    exchanging = open_exchange(SETTINGS, CPU, control, new_group, timeout)
    assert exchanging.device == CPU
    backend = control._get_backend(CPU)
    assert backend.options._timeout == timeout  # type: ignore[attr-defined]  # no stub
    streams = exchanging.post.__self__  # type: ignore[attr-defined]  # a method of theirs
    assert isinstance(streams, TcpStreams)
    assert streams._timeout_s == waits_s


def test_training_on_the_cpu_is_sent_by_it_and_by_nothing_else(waits_s: float) -> None:
    timeout = timedelta(seconds=waits_s)
    control = new_group("gloo", timeout)
    exchanging = open_exchange(SETTINGS, CPU, control, new_group, timeout)
    assert isinstance(choose_device(SETTINGS, CPU, Gate(), exchanging), CpuDevice)
    nccl = replace(SETTINGS, traffic=TrafficOptions(send="nccl"))
    with pytest.raises(ValueError, match="NCCL sends from GPUs only"):
        open_exchange(nccl, CPU, control, new_group, timeout)

"""When what arrives is digested: while the rest is under way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from castor_policy.interleaving import EAGER
from castor_policy.job_options import TrafficOptions
from castor_runtime.arena import PartLayout, Replica, SegmentOwner
from castor_runtime.state.sections import lay_out
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.device import CpuDevice
from castor_runtime.trainer.exchange import Exchange, Part
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.launches import ByTime
from castor_runtime.trainer.traffic import Traffic

CHUNK = 4096
OWNER = SegmentOwner("digest-test", "0" * 16, "agent", b"0123456789abcdef")
SETTINGS = TrainerSettings(
    job=OWNER.job,
    run=OWNER.run,
    rank=0,
    machine=0,
    local_rank=0,
    generation=1,
    ranks_per_machine=1,
    replicas=((0, 1), (1, 0)),
    socket="",
    control="",
    started_ns=0,
    traffic=TrafficOptions(chunk_bytes=CHUNK),
)


def test_a_piece_is_digested_before_the_next_one_is_waited_for(tmp_path: Path) -> None:
    sections = lay_out([("t", torch.uint8, [3 * CHUNK])])
    replicas = [
        Replica.create(f"of-{rank}", OWNER, PartLayout(rank, 3 * CHUNK, 64, CHUNK), folder=tmp_path)
        for rank in (0, 1)
    ]
    own, remote = (Part(replica.begin(1, 1, None)) for replica in replicas)
    digested: list[int] = []

    class Arrival:
        def __init__(self, target: torch.Tensor) -> None:
            self.target = target

        def wait(self) -> None:
            digested.append(len(remote.digests))
            self.target.fill_(7)

    def post(_: int, __: Sequence[Any], incoming: Sequence[tuple[int, torch.Tensor]]) -> list[Any]:
        return [Arrival(target) for _, target in incoming]

    gate = Gate()
    device = CpuDevice(post)
    exchange = Exchange(SETTINGS, device, gate, ByTime(gate), [3 * CHUNK])
    device.capture(sections, [torch.ones(3 * CHUNK, dtype=torch.uint8)], own.data, lambda: None)
    exchange.run(own, {1: remote}, Traffic(EAGER, CHUNK, 1))
    assert digested == [0, 1, 2]
    own.end(None)
    remote.end(b"")
    assert replicas[1].verify(1) == []

"""A trainer that the kernel kills because memory is short: its rank is named, and why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from castor_lab.soak.trial import train
from castor_records.events.failures import Detected
from tests.memory_cgroup import memory_cgroup, reason_without

pytestmark = pytest.mark.long

# In its third iteration rank 1 takes more memory than there is, once.
TAKES_TOO_MUCH = """
import os
import pathlib
import torch
from castor import Checkpointer, TensorState

torch.distributed.init_process_group("gloo")
total = torch.zeros(1000)
checkpointer = Checkpointer(TensorState({{"total": total}}))
taken = pathlib.Path({taken!r})
for iteration in range(checkpointer.resume(), 6):
    if iteration == 2 and torch.distributed.get_rank() == 1 and not taken.exists():
        taken.touch()
        pathlib.Path({members!r}).write_text(str(os.getpid()))
        bytearray(400 << 20)
    share = torch.ones(1000)
    torch.distributed.all_reduce(share)
    checkpointer.before_update()
    total += share
    checkpointer.step()
print("total", set(total.tolist()), flush=True)
"""


def test_who_was_killed_for_memory_is_named_with_the_kernels_words(tmp_path: Path) -> None:
    if why := reason_without():
        pytest.skip(why)
    with memory_cgroup(50 << 20) as members:
        script = tmp_path / "takes_too_much.py"
        taken = str(tmp_path / "taken")
        script.write_text(TAKES_TOO_MUCH.format(taken=taken, members=str(members)))
        trial = train(tmp_path / "run", ["--nodes", "2", "--lease", "5s", str(script)])
    sys.stdout.write(trial.output)
    assert trial.code == 0, trial.output
    (found,) = [entry.event for entry in trial.of(Detected)]
    assert (found.machine, found.rank, found.how) == (1, 1, "signal")
    cause = found.cause or ""
    assert cause.startswith("rank 1 was killed by signal 9: the kernel: ")
    assert "ut of memory: Killed process" in cause
    for rank in (0, 1):
        log = trial.folder / "agents" / f"node-{rank}" / f"rank-{rank}.log"
        assert "total {12.0}" in log.read_text()

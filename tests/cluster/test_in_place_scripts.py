"""Scripts with `iteration()` in their loop: errors of their own, and what cannot go on in place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from castor_lab.soak.trial import plain, train
from castor_records.events.failures import TrainerStarted, TrainerStayed
from castor_records.events.training import Warned

pytestmark = pytest.mark.long

# Every rank's third try fails and is caught; rank 1's fifth iteration fails whenever it is tried.
RAISES = """
import deepspeed
import torch
from castor import Checkpointer

class Tries:
    def __init__(self): self.count = 0
    def state_dict(self): return {"count": self.count}
    def load_state_dict(self, state): self.count = state["count"]

deepspeed.init_distributed("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
tries = Tries()
checkpointer = Checkpointer(engine, state={"tries": tries})
while checkpointer.done < 6:
    try:
        with checkpointer.iteration():
            tries.count += 1
            if tries.count == 3:
                raise ValueError("this batch is bad")
            if checkpointer.done == 4 and torch.distributed.get_rank() == 1:
                raise ValueError("the fifth is worse")
            engine.backward(engine(torch.ones(1, 64)).square().mean())
            engine.step()
    except ValueError as error:
        told = f"done {checkpointer.done}, tries {tries.count}, cause {error.__cause__}"
        print(f"caught {error}: {told}", flush=True)
        if checkpointer.done == 4:
            raise
"""

# Rank 0 waits for rank 1 with a gradient that nobody takes away before the next backward.
PLAIN_TORCH = """
import time
import torch
from castor import Checkpointer, TensorState

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1000))
    def forward(self, batch):
        return (self.weight * batch).sum()

model = {wrap}(Model())
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
checkpointer = Checkpointer(TensorState(model.state_dict(), optimizer))
while checkpointer.done < 20:
    with checkpointer.iteration():
        model(torch.full((1000,), (rank + 1.0) * (checkpointer.done + 1))).backward()
        time.sleep(0.1 * rank)
        (weight,) = model.parameters()
        torch.distributed.all_reduce(weight.grad)
        optimizer.step()
        optimizer.zero_grad()
checkpointer.finish()
print("weight", set(weight.tolist()), flush=True)
"""


def log_of(folder: Path, rank: int) -> str:
    return plain((folder / "agents" / f"node-{rank}" / f"rank-{rank}.log").read_text())


def test_an_error_of_the_scripts_own_leaves_as_it_came(tmp_path: Path) -> None:
    script = tmp_path / "raises.py"
    script.write_text(RAISES)
    line = ["--nodes", "2", "--lease", "5s", "--max-attempts", "2", str(script)]
    trial = train(tmp_path / "run", line)
    sys.stdout.write(trial.output)
    # Nobody was restarted for an error that the script has caught, and nothing was set back.
    for rank in (0, 1):
        said = "caught this batch is bad: done 2, tries 3, cause None"
        assert log_of(trial.folder, rank).count(said) == 1
    # One that it has not ends its rank as any does, and the job when it comes again.
    said = log_of(trial.folder, 1)
    times = said.count("caught the fifth is worse: done 4")
    assert said.count(" ValueError: the fifth is worse") == times > 1
    assert trial.code == 1
    assert "ValueError: the fifth is worse" in trial.result["reason"]
    assert trial.processes_left == ()
    anew = [e.event for e in trial.of(TrainerStarted)]
    assert [one.generation for one in anew[:3]] == [1, 1, 2]
    assert {one.rank for one in anew[2:]} == {1}
    assert {entry.event.rank for entry in trial.of(TrainerStayed)} == {0}


@pytest.mark.parametrize(
    ("wrap", "why"),
    [
        ("", ""),
        # It has averaged the gradients before they are summed once more: the sum is the same.
        (
            "torch.nn.parallel.DistributedDataParallel",
            "DistributedDataParallel keeps what an interrupted backward leaves",
        ),
    ],
)
def test_plain_torch_goes_on_in_place_unless_it_keeps_more_than_gradients(
    tmp_path: Path, wrap: str, why: str
) -> None:
    script = tmp_path / "plain_torch.py"
    script.write_text(PLAIN_TORCH.format(wrap=wrap))
    line = ["--nodes", "2", "--lease", "5s", "--kill", "rank:1@8", str(script)]
    trial = train(tmp_path / "run", line)
    sys.stdout.write(trial.output)
    assert trial.code == 0, trial.output
    assert trial.result["faults_not_injected"] == []
    assert trial.processes_left == trial.memory_left == ()
    for rank in (0, 1):  # 3 in the first iteration, 60 in the last
        assert "weight {-630.0}" in log_of(trial.folder, rank)
    started = {(e.event.generation, e.event.rank) for e in trial.of(TrainerStarted)}
    stayed = {(e.event.generation, e.event.rank) for e in trial.of(TrainerStayed)}
    survivor = {(2, 0)}
    assert stayed == (set() if why else survivor)
    assert started == {(1, 0), (1, 1), (2, 1)} | (survivor if why else set())
    said = f"trainers are restarted when one is lost: {why}"
    warned = [e.event for e in trial.of(Warned) if "restarted when one is lost" in e.event.message]
    assert {one.message for one in warned} == ({said} if why else set())
    assert sorted((one.generation, one.rank) for one in warned) == (sorted(started) if why else [])

"""Castor, started by `castor train`: `Checkpointer` around plain tensors."""

from __future__ import annotations

import time

import torch
from workload import Options, Restarted, train

from castor import Checkpointer, TensorState
from castor_lab.programs.went_back import WentBack
from castor_runtime.arena import ControlBlock
from castor_runtime.trainer.agent_link import TrainerSettings


class CastorPeer(Restarted):
    """The agents hold the copies; restores and fetches are those of real recoveries."""

    def __init__(self, state: dict[str, torch.Tensor], asked: Options) -> None:
        del asked
        settings = TrainerSettings.from_environment()
        if settings is None:
            raise SystemExit("start this with `castor train`")
        self._went_back = WentBack()
        self._checkpointer = Checkpointer(
            TensorState(state), {"went_back": self._went_back}, update_after="capture"
        )
        self._counters = ControlBlock.open(settings.control).rank(settings.local_rank)

    def recover(self) -> int:
        done = self._checkpointer.resume()
        self._went_back.ask()
        return done

    def save(self, iteration: int) -> None:
        del iteration
        self._checkpointer.step()
        self._checkpointer.before_update()

    def wait_usable(self, iteration: int) -> None:
        while self._counters.agreed < iteration:
            time.sleep(0.005)
            self._checkpointer.before_update()  # raises what ended the checkpoint thread

    def restore(self) -> None:
        return None

    def fetch(self) -> None:
        return None

    def close(self) -> None:
        self._checkpointer.finish()


if __name__ == "__main__":
    train(CastorPeer)

"""When checkpoints may be sent by NCCL."""

from __future__ import annotations

import pytest
import torch

from castor_runtime.trainer.nccl_order import VARIABLE, check_nccl, launch_order, refuse_unordered


@pytest.mark.parametrize(
    ("version", "implicit", "scheme", "part"),
    [
        ((2, 21, 5), "1", "pipelined", "NCCL 2.21.5 keeps no order of launches"),
        ((2, 26, 2), "", "eager", f"{VARIABLE} is not set to 1: choose --send cpu"),
        ((2, 26, 2), "0", "eager", "is not set to 1"),
    ],
)
def test_nccl_that_keeps_no_order_is_refused(
    version: tuple[int, ...], implicit: str, scheme: str, part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        refuse_unordered(version, implicit, scheme)


def test_where_training_waits_any_nccl_will_do(capsys: pytest.CaptureFixture[str]) -> None:
    refuse_unordered((2, 18, 1), "", "blocking")
    assert capsys.readouterr().err == ""


def test_a_trainer_says_what_was_not_tried(capsys: pytest.CaptureFixture[str]) -> None:
    refuse_unordered((2, 27, 3), launch_order("nccl")[VARIABLE], "pipelined")
    assert "under scheme pipelined, launched in one order" in capsys.readouterr().err
    assert launch_order("cpu") == {}


def test_nccl_on_the_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="send is nccl, but training is on cpu"):
        check_nccl(torch.device("cpu"), "blocking")

"""Paced compute: real parameters and real updates, waits for arithmetic, and always said so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from castor_configs.model import Model, load_model
from castor_lab.pacing import labelled
from castor_lab.programs import paced_layer
from castor_lab.programs.language_model import build_language_model
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import DeviceOptions
from castor_runtime.launcher.train_options import TrainOptions


def shape() -> Model:
    sizes = {"layers": 3, "hidden": 16, "intermediate": 64, "heads": 2, "vocab": 32}
    sizes |= {"sequence_length": 8, "micro_batch": 2}
    return load_model("gpt2-tiny", overrides=[f"{key}={value}" for key, value in sizes.items()])


def gradients(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = build_language_model(shape(), dropout=0.0, paced_layer_s=0.25)
    model(tokens).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters())), "every parameter is updated"
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(paced_layer.time, "sleep", slept.append)
    return slept


def test_a_layer_waits_forward_and_twice_that_backward(waits: list[float]) -> None:
    model = build_language_model(shape(), paced_layer_s=0.25)
    loss = model(torch.arange(16).view(2, 8))
    assert waits == [0.25] * 3
    loss.backward()
    assert waits == [0.25] * 3 + [0.5] * 3


@pytest.mark.parametrize("model", ["gpt2-tiny", "bert-40b"])
def test_a_paced_model_has_the_parameters_of_a_real_one(model: str) -> None:
    small = load_model(
        model, overrides=["layers=2", "hidden=32", "intermediate=48", "heads=2", "vocab=64"]
    )
    sizes = [
        sorted(
            tuple(p.shape) for p in build_language_model(small, paced_layer_s=paced).parameters()
        )
        for paced in (None, 0.0)
    ]
    assert sizes[0] == sizes[1]


def test_updates_follow_data_and_weights_and_nothing_else(waits: list[float]) -> None:
    tokens = torch.arange(16).view(2, 8)
    first, again, other = gradients(tokens), gradients(tokens), gradients(tokens.flip(0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
    paced = [name for name in first if name.startswith("layers.")]
    assert len(paced) == 3 * 12
    for name in paced:
        assert first[name].min() > -1.0
        assert not torch.equal(first[name], other[name]), name
        if "norm" not in name and name.endswith("weight"):
            assert first[name].unique().numel() > first[name].numel() // 2


@pytest.mark.parametrize("wait_s", [-0.1, float("nan"), float("inf")])
def test_a_wait_that_is_no_time_is_refused(wait_s: float) -> None:
    with pytest.raises(ValueError, match="waits for 0 s or more"):
        build_language_model(shape(), paced_layer_s=wait_s)


def test_a_paced_run_is_known_by_its_arguments() -> None:
    def label(*arguments: str, **copies: int) -> tuple[str, int]:
        rows = ((0,),)
        spec = JobSpec("j", 1, 1, "mixed", rows, "train.py", arguments, **copies)
        options = labelled(TrainOptions(spec, Path("run")))
        return options.compute, len(options.notes)

    assert label("--iterations", "3") == ("real", 0)
    assert label("--iterations", "3", "--paced-layer-ms", "5") == ("paced", 1)
    assert label("--paced-layer-ms=5") == ("paced", 1)
    assert label("--text", "paced-layer-ms") == ("real", 0)
    assert label("--paced-layer-ms=5", device=DeviceOptions(paced_copy_bps=8)) == ("paced", 2)
    assert label(device=DeviceOptions(paced_copy_bps=8)) == ("paced", 1)

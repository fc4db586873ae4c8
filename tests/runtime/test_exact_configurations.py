"""What DeepSpeed configurations are taken: a list of the exact ones, by dotted key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from castor_runtime.trainer.exact_configurations import (
    STAGE_3,
    TRIED,
    InexactError,
    refuse_inexact,
    refuse_inexact_engine,
)


def zero(**options: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 3, **options}}


USUAL = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "sub_group_size": 1e9,
        "stage3_param_persistence_threshold": 1e5,
        "offload_optimizer": {"device": "cpu", "pin_memory": True, "ratio": 1.0},
        "offload_param": {"device": "none"},
        "zenflow": None,
        "zero_quantized_weights": False,
    },
    "bf16": {"enabled": True},
    "fp16": {"enabled": False, "fp16_master_weights_and_grads": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 10}},
    "activation_checkpointing": {"partition_activations": True},
    "tensorboard": {"enabled": True, "output_path": "out"},
    "data_efficiency": {"enabled": False, "data_routing": {"enabled": True}},
    "steps_per_print": 10,
}


def test_what_people_use_is_taken() -> None:
    refuse_inexact(USUAL)


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        (zero(offload_optimizer={"device": "cpu", "ratio": 0.3}), "offload_optimizer.ratio = 0.3"),
        (zero(offload_optimizer={"device": "nvme"}), "offload_optimizer.device = 'nvme'"),
        (zero(offload_param={"device": "nvme", "nvme_path": "/x"}), "offload_param.nvme_path"),
        (zero(offload_optimizer={"super_offload": True}), "offload_optimizer.super_offload"),
        (zero(zenflow={"topk_ratio": 0.1}), "zero_optimization.zenflow.topk_ratio = 0.1: ZenFlow"),
        (zero(zero_quantized_gradients=True), "zero_quantized_gradients = True"),
        (zero(zero_quantized_nontrainable_weights=True), "scales of quantized frozen parameters"),
        (zero(of_a_later_version={"deep": 3}), "zero_optimization.of_a_later_version.deep = 3"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage = 0"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage = 1"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage = 2"),
        ({"optimizer": {"type": "Muon"}}, "optimizer.type = 'Muon'"),
        ({"optimizer": {"type": "OneBitAdam"}}, "optimizer.type = 'OneBitAdam'"),
        ({"data_efficiency": {"enabled": True, "seed": 3}}, "data_efficiency.enabled = True"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile = True"),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation = False"),
        (zero(offload_optimizer={"ratio": 0.0}), "offload_optimizer.ratio = 0.0"),
        ({"optimizer": {"type": "AdamW", "legacy_fusion": True}}, "optimizer.legacy_fusion = True"),
        ({"scheduler": {"type": "CosineAnnealingLR"}}, "scheduler.type = 'CosineAnnealingLR'"),
        ({"a_new_feature": [1, 2]}, r"a_new_feature = \[1, 2\]"),
    ],
)
def test_anything_else_is_refused_by_its_dotted_key(
    configuration: dict[str, Any], said: str
) -> None:
    with pytest.raises(InexactError, match=said):
        refuse_inexact(configuration)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(InexactError, match=r"zenflow.*; optimizer\.type"):
        refuse_inexact(zero(zenflow={"topk_ratio": 0.1}) | {"optimizer": {"type": "Muon"}})


class DeepSpeedZeroOptimizer_Stage3:  # noqa: N801 - DeepSpeed's name, which is what is compared
    use_muon = False
    zenflow = False
    offloaded_states: frozenset[str] = frozenset()


class DeepSpeedEngine:
    """What the checks read of one; real engines: test_held_state.py."""

    has_moe_layers = False
    mp_world_size = 1

    def __init__(self, **differs: Any) -> None:
        self.optimizer = DeepSpeedZeroOptimizer_Stage3()
        vars(self).update(differs)

    def offload_states(self) -> None:
        pass


def test_an_engine_that_does_more_than_its_configuration_says_is_refused() -> None:
    refuse_inexact_engine(DeepSpeedEngine())
    with pytest.raises(InexactError, match="mixture-of-experts"):
        refuse_inexact_engine(DeepSpeedEngine(has_moe_layers=True))
    with pytest.raises(InexactError, match="tensor or pipeline"):
        refuse_inexact_engine(DeepSpeedEngine(mp_world_size=2))
    muon = DeepSpeedEngine()
    muon.optimizer.use_muon = True
    with pytest.raises(InexactError, match="Muon"):
        refuse_inexact_engine(muon)
    with pytest.raises(InexactError, match="of type SimpleNamespace"):
        refuse_inexact_engine(
            SimpleNamespace(
                has_moe_layers=False, mp_world_size=1, optimizer=DeepSpeedZeroOptimizer_Stage3()
            )
        )


def test_states_are_not_taken_away_under_a_checkpoint() -> None:
    engine = DeepSpeedEngine()
    refuse_inexact_engine(engine)
    with pytest.raises(InexactError, match="offload_states"):
        engine.offload_states()


REFUSALS = {
    **{f"stage {stage}": f"ZeRO stage 3, this one has stage {stage}" for stage in (0, 1, 2)},
    "no stage": "ZeRO stage 3, this one has stage 0",
    "Muon": "Muon changes its momentum before the optimizer's step",
    "Muon, momentum in memory": "save_muon_momentum_buffer_in_memory = True",
}


@pytest.mark.long
def test_every_option_that_is_said_to_be_tried_is_exact(
    make_cluster: Callable[..., Any], tmp_path: Path
) -> None:
    program, out = Path(__file__).with_name("exact_program.py"), tmp_path / "out.json"
    make_cluster(1, 1).run("script", {"arguments": [str(program), str(out)]}).results()
    trials = json.loads(out.read_text())
    assert {name: came for name, came in trials["found"].items() if came != "exact"} == {}
    assert {name for name, said in trials["refused"].items() if not said} == set()
    for name, said in REFUSALS.items():
        assert said in trials["refused"].pop(name)
    assert trials["refused"] == {}
    used = {key.replace(STAGE_3, ""): values for key, values in trials["used"].items()}
    untried = {key for key in TRIED if key.replace(STAGE_3, "") not in used}
    assert untried == set()
    for key in ("optimizer.type", "scheduler.type"):
        assert TRIED[key] == {str(value).lower() for value in used[key]}

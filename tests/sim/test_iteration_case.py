"""Iterations from configurations, and the paper's numbers in them."""

from __future__ import annotations

import pytest

from castor_configs.cluster import load_cluster
from castor_configs.errors import InputError
from castor_configs.model import load_model
from castor_sim.iteration.case import case_of_model, load_iteration
from castor_sim.iteration.run import IterationReport, simulate_iteration
from castor_sim.iteration.tasks import Lane
from castor_sim.iteration.workload import model_blocks
from castor_sim.iteration_config import IterationConfig


@pytest.fixture(scope="module")
def paper() -> IterationReport:
    return simulate_iteration(load_iteration("gpt2-40b-p3dn").case)


def test_the_papers_schemes_are_in_the_papers_order(paper: IterationReport) -> None:
    # Fig. 16: +10.1 %, out of memory, +3.5 %, nothing.
    assert paper.overhead("blocking") == pytest.approx(0.101, abs=0.005)
    assert paper.overhead("unpipelined") == pytest.approx(0.035, abs=0.002)
    assert 0 <= paper.overhead("pipelined") < 0.001
    out = {name for name, result in paper.results.items() if result.out_of_memory}
    assert out == {"naive"}


def test_the_papers_iteration_idle_and_checkpoint_time(paper: IterationReport) -> None:
    # Fig. 13: 45.4, 5.7 and 4.4 s; sec. 7.4: the largest span takes 1.6 s.
    assert paper.baseline.iteration_ns / 1e9 == pytest.approx(45.4, rel=0.02)
    assert paper.baseline.idle_ns / 1e9 == pytest.approx(5.7, rel=0.06)
    assert paper.results["pipelined"].checkpoint_ns / 1e9 == pytest.approx(4.4, rel=0.04)
    assert max(span.idle_ns for span in paper.spans[0]) / 1e9 == pytest.approx(1.6, abs=0.02)


def test_zero3_moves_the_model_three_times() -> None:
    model, cluster = load_model("gpt2-40b"), load_cluster("p3dn")
    case = case_of_model(model, cluster, 16, IterationConfig())
    moved = sum(task.size_bytes for task in case.tasks if task.lane is Lane.NETWORK)
    # Two gathers and a reduction in half precision, over a ring of 128; the output layer's
    # embedding, 0.6 % of the parameters, is gathered twice more.
    assert moved == pytest.approx(3 * 2 * model.parameters * 127 / 128, rel=0.006)
    # C: 12 B a parameter over all GPUs.
    assert case.traffic.shard_bytes == -(-12 * model.parameters // 128)


def test_flop_of_a_model() -> None:
    model = load_model("gpt2-40b")
    blocks = model_blocks(model)
    assert len(blocks) == model.layers + 2
    tokens = 8 * 512
    # 2 FLOP a parameter and token forward; the attention over 512 tokens and the embedding, which
    # is looked up but multiplied with at the end, add 2 %.
    assert sum(block.forward_flop for block in blocks) == pytest.approx(
        2 * model.parameters * tokens, rel=0.025
    )
    assert sum(block.reduce_bytes for block in blocks) == pytest.approx(
        2 * model.parameters, rel=1e-6
    )


@pytest.mark.parametrize("parallelism", ["zero3", "hybrid", "data", "pipeline"])
def test_each_parallelism_runs_with_jitter_and_storage_traffic(parallelism: str) -> None:
    model = load_model("gpt2-tiny")
    config = IterationConfig.model_validate(
        {
            "parallelism": parallelism,
            "jitter": 0.05,
            "profiled": 3,
            "measured": 2,
            "storage_traffic": "1Gbps",
        }
    )
    report = simulate_iteration(case_of_model(model, load_cluster("four-node"), 4, config))
    base_ns = report.baseline.iteration_ns
    assert all(result.iteration_ns >= base_ns for result in report.results.values())
    assert report.results["blocking"].iteration_ns > base_ns


def test_a_cluster_that_says_too_little_says_what_to_set() -> None:
    model, config = load_model("gpt2-tiny"), IterationConfig()
    cluster = load_cluster("p3dn")
    for key in ("gpu_peak_tflops", "gpu_link_bandwidth"):
        lacking = cluster.model_copy(update={key: None})
        with pytest.raises(ValueError, match=f"set {key}"):
            case_of_model(model, lacking, 16, config)
    with pytest.raises(InputError, match="storage_traffic leaves nothing"):
        load_iteration("gpt2-40b-p3dn", ("iteration.storage_traffic=100Gbps",))

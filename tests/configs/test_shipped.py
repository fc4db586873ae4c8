"""The shipped clusters and models, against the paper and public parameter counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_configs.cluster import Cluster, load_cluster
from castor_configs.errors import InputError
from castor_configs.load import available_configs, dump_toml, load_toml
from castor_configs.model import Family, Model, load_model

CLUSTERS = ("four-node", "llama3-405b", "opt-175b", "p3dn", "p4d")
PAPER_MODELS = {
    "gpt2-10b": (10.0e9, "p3dn", 10.9),
    "gpt2-20b": (20.4e9, "p3dn", 22.7),
    "gpt2-40b": (40.5e9, "p3dn", 45.4),
    "roberta-40b": (40.5e9, "p3dn", 47.8),
    "bert-40b": (40.5e9, "p3dn", 46.5),
    "gpt2-100b": (100.3e9, "p4d", 62.0),
    "roberta-100b": (100.3e9, "p4d", 79.1),
    "bert-100b": (100.3e9, "p4d", 73.0),
}
OTHER_MODELS = ("gpt2-tiny", "llama3-405b", "opt-175b")


def test_nothing_is_missing() -> None:
    assert set(CLUSTERS) <= set(available_configs("clusters"))
    assert {*PAPER_MODELS, *OTHER_MODELS} <= set(available_configs("models"))


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_cluster_loads_and_loads_back(name: str, tmp_path: Path) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.source
    assert cluster.gpu_hour_price > 0
    copy = tmp_path / "copy.toml"
    copy.write_text(dump_toml(cluster), encoding="utf-8")
    assert load_toml(copy, Cluster) == cluster


@pytest.mark.parametrize("name", [*PAPER_MODELS, *OTHER_MODELS])
def test_every_model_loads_and_loads_back(name: str, tmp_path: Path) -> None:
    model = load_model(name)
    assert model.source
    assert set(model.iteration_time) <= set(available_configs("clusters"))
    for cluster, idle_ns in model.idle_time.items():
        assert idle_ns < model.iteration_time_ns(cluster)
    copy = tmp_path / "copy.toml"
    copy.write_text(dump_toml(model), encoding="utf-8")
    assert load_toml(copy, Model) == model


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_the_papers_models(name: str) -> None:
    parameters, cluster, iteration_s = PAPER_MODELS[name]
    model = load_model(name)
    # The paper's names are round: RoBERTa's and BERT's heads add up to 0.2 %.
    assert model.parameters == pytest.approx(parameters, rel=3e-3)
    assert model.iteration_time_ns(cluster) == round(iteration_s * 10**9)
    assert model.checkpoint_time[cluster] < model.idle_time[cluster]
    assert (model.vocab, model.sequence_length, model.micro_batch) == (50_265, 512, 8)


def test_the_10b_row_of_table_2_keeps_its_shape_and_states_its_size() -> None:
    model = load_model("gpt2-10b")
    assert (model.hidden, model.layers) == (2560, 46)
    assert model.shape_parameters == pytest.approx(3.75e9, rel=2e-3)
    assert model.parameters == 10_000_000_000


def test_a_checkpoint_of_100b_is_the_papers() -> None:
    model, cluster = load_model("gpt2-100b"), load_cluster("p4d")
    assert model.checkpoint_bytes == pytest.approx(1.20e12, rel=5e-3)
    assert model.checkpoint_bytes / cluster.gpus == pytest.approx(9.4e9, rel=2e-3)
    assert model.shard_bytes(cluster.machines) == pytest.approx(75.2e9, rel=1e-3)
    # 480 s to storage, as in the paper's sec. 7.3.
    assert 8 * model.checkpoint_bytes / cluster.storage.bandwidth == pytest.approx(480, rel=5e-3)


def test_the_papers_clusters() -> None:
    p4d, p3dn = load_cluster("p4d"), load_cluster("p3dn")
    assert (p4d.machines, p4d.gpus, p3dn.gpus) == (16, 128, 128)
    assert (p4d.network_bandwidth, p3dn.network_bandwidth) == (400 * 10**9, 100 * 10**9)
    assert (p4d.cpu_memory, p3dn.cpu_memory) == (1152 * 10**9, 768 * 10**9)
    assert p4d.storage.bandwidth == p3dn.storage.bandwidth == 20 * 10**9
    assert p4d.gpus * p4d.gpu_hour_price == pytest.approx(16 * 32.77, rel=2e-3)


def test_the_derived_iteration_times_are_what_their_comments_derive() -> None:
    opt, llama = load_model("opt-175b"), load_model("llama3-405b")
    opt_s = 8 * opt.parameters * (8 * 124 * 2048) / (992 * 147e12)
    assert opt.iteration_time_ns("opt-175b") / 1e9 == pytest.approx(opt_s, rel=0.01)
    llama_s = 1.04 * 6 * llama.parameters * (128 * 16 * 8192) / (16_384 * 400e12)
    assert llama.iteration_time_ns("llama3-405b") / 1e9 == pytest.approx(llama_s, rel=0.01)
    assert load_cluster("opt-175b").gpus == 992
    assert load_cluster("llama3-405b").gpus == 16_384


@pytest.mark.parametrize(
    ("family", "shape", "parameters"),
    [
        # hidden, intermediate, layers, heads, key and value heads, vocabulary, sequence
        ("gpt2", (768, 3072, 12, 12, 12, 50_257, 1024), 124_439_808),
        ("bert", (768, 3072, 12, 12, 12, 30_522, 512), 110_106_428),
        ("roberta", (768, 3072, 12, 12, 12, 50_265, 512), 124_697_433),
        ("llama", (4096, 14_336, 32, 32, 8, 128_256, 8192), 8_030_261_248),
        ("opt", (768, 3072, 12, 12, 12, 50_272, 2048), 125_239_296),
    ],
)
def test_parameters_of_published_models_to_the_last_one(
    family: Family, shape: tuple[int, ...], parameters: int
) -> None:
    hidden, intermediate, layers, heads, key_value_heads, vocab, sequence_length = shape
    model = Model(
        name="published",
        family=family,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        vocab=vocab,
        sequence_length=sequence_length,
        micro_batch=1,
    )
    assert model.parameters == parameters


def test_a_cluster_without_a_measured_time_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"\(given: p4d\): set iteration_time\.p3dn"):
        load_model("gpt2-100b").iteration_time_ns("p3dn")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpu_hour_price=free", 'gpu_hour_price: expected a number, not "free"'),
        ("gpu_hour_price=-1", "gpu_hour_price: expected a value of at least 0, not -1"),
        ("currency=euro", "currency: "),
        ("storage.bandwidth=0", "storage.bandwidth: expected a value over 0, not 0"),
        ("machines=4.0", "machines: expected a whole number, not 4.0"),
        ("domains.machine_per_rack=2", "did you mean `machines_per_rack`?"),
    ],
)
def test_wrong_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_cluster("p4d", overrides=[override])
    assert str(caught.value).startswith("--set: ")
    assert message in str(caught.value)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match=r"expected hidden \(8192\) to be a multiple of heads"):
        load_model("gpt2-100b", overrides=["heads=60"])
    with pytest.raises(InputError, match=r"a multiple of key_value_heads \(48\)"):
        load_model("gpt2-100b", overrides=["key_value_heads=48"])
    with pytest.raises(InputError, match="unknown key `paramters`; did you mean `parameters`"):
        load_model("gpt2-100b", overrides=["paramters=3"])

"""Whatever is written as TOML loads as an equal value."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from castor_configs.cluster import Cluster, FailureDomains, Storage
from castor_configs.load import dump_toml, load_toml
from castor_configs.quantities import NS_MAX, Nanoseconds


class Leaf(BaseModel):
    model_config = ConfigDict(frozen=True)

    text: str = ""
    number: float = 0.0
    many: tuple[tuple[int, ...], ...] = ()
    maybe: int | None = None


class Tree(BaseModel):
    model_config = ConfigDict(frozen=True)

    flag: bool
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    nested: dict[str, dict[str, Leaf]]
    in_lists: tuple[tuple[Leaf, ...], ...] = ()
    whole: int


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAVES = st.builds(
    Leaf,
    text=TEXTS,
    number=st.floats(allow_nan=False),
    many=st.lists(st.lists(st.integers(), max_size=2).map(tuple), max_size=2).map(tuple),
    maybe=st.none() | st.integers(),
)
TREES = st.builds(
    Tree,
    flag=st.booleans(),
    leaf=LEAVES,
    leaves=st.lists(LEAVES, max_size=3).map(tuple),
    nested=st.dictionaries(TEXTS, st.dictionaries(TEXTS, LEAVES, max_size=2), max_size=2),
    in_lists=st.lists(st.lists(LEAVES, max_size=2).map(tuple), max_size=2).map(tuple),
    whole=st.integers(),
)


@given(TREES)
def test_any_value_loads_back(tree: Tree) -> None:
    assert Tree.model_validate(tomllib.loads(dump_toml(tree))) == tree


class Timed(BaseModel):
    model_config = ConfigDict(frozen=True)

    exact: Nanoseconds
    by_name: dict[str, Nanoseconds] = {}  # pydantic copies a default


@given(st.integers(0, NS_MAX))
def test_nanoseconds_load_back_exactly(nanoseconds: int) -> None:
    timed = Timed(exact=f"{nanoseconds}ns", by_name={"a": f"{nanoseconds}ns"})  # type: ignore[arg-type,dict-item]  # the text that the field takes
    assert timed.exact == nanoseconds
    assert Timed.model_validate(tomllib.loads(dump_toml(timed))) == timed


def test_a_cluster_loads_back_through_a_file(tmp_path: Path) -> None:
    cluster = Cluster(
        name='a "quoted" name',
        machines=3,
        gpus_per_machine=2,
        gpu="any\x7f",
        gpu_memory=1,
        cpu_memory=2,
        network_bandwidth=3,
        network_alpha=1e-7,
        gpu_to_cpu_bandwidth=5,
        storage=Storage(bandwidth=6),
        gpu_hour_price=0.1,
        domains=FailureDomains(machines_per_rack=2),
    )
    path = tmp_path / "cluster.toml"
    path.write_text(dump_toml(cluster), encoding="utf-8")
    assert load_toml(path, Cluster) == cluster


def test_the_text_is_one_that_a_person_reads() -> None:
    leaf = Leaf(text="a", number=0.5)
    tree = Tree(flag=True, leaf=leaf, leaves=(leaf,), nested={"b c": {}}, whole=3)
    assert dump_toml(tree) == (
        "flag = true\nin_lists = []\nwhole = 3\n"
        '\n[leaf]\ntext = "a"\nnumber = 0.5\nmany = []\n'
        '\n[nested]\n\n[nested."b c"]\n'
        '\n[[leaves]]\ntext = "a"\nnumber = 0.5\nmany = []\n'
    )


def test_what_toml_cannot_hold_is_refused() -> None:
    class Default(BaseModel):
        maybe: int | None = 3

    with pytest.raises(ValueError, match="cannot be written as TOML"):
        dump_toml(Default(maybe=None))
    with pytest.raises(ValueError, match="cannot be written as TOML"):
        dump_toml(Leaf(number=math.nan))

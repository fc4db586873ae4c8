"""A stranger's things, one of each kind: as CONTRIBUTING.md says, added from outside, and used."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_configs.plugins import KINDS, VARIABLE
from castor_configs.schemes import SCHEMES
from castor_policy.agents.store_keys import requests_prefix
from castor_policy.chunk_schedule import Link
from castor_policy.store import Put, Txn
from castor_runtime.background_tasks import BackgroundTasks
from castor_runtime.operators import OPERATORS, open_operator
from castor_runtime.operators.protocol import JobToJoin
from castor_runtime.operators.serving import RequestServer
from castor_runtime.trainer.engines import ENGINES
from castor_runtime.trainer.traffic import Traffic
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel
from castor_sim.strategies import STRATEGIES
from castor_traces.importers import FORMATS
from paper_figures.catalog import FIGURES

Recipes = Callable[[str, Path], Any]


@pytest.fixture
def added(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[list[str]]]:
    """Follow a recipe in a folder of the test's own; return its commands."""

    def follow(title: str) -> list[list[str]]:
        found = recipe(title, tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(VARIABLE, found.plugins)
        return list(found.commands)

    return follow


def run(words: list[str]) -> str:
    assert words[0] == "castor"
    result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_strategy_runs_on_all_three_engines(added: Callable[[str], Any]) -> None:
    (command,) = added("A strategy")
    command += ["--set", "duration=12h", "--set", "failures.per_day=8", "--jobs", "1", "--json"]
    results = [
        json.loads(run([*command, *engine]))["strategies"]
        for engine in ([], ["--engine", "simpy"], ["--exact-iterations"])
    ]
    assert results[0] == results[1] == results[2]
    assert results[0]["periodic"]["recoveries"] > 0


def test_a_scheme_is_simulated_scheduled_and_trained_with(
    added: Callable[[str], Any], tmp_path: Path
) -> None:
    iterate, schedule = added("A scheme")
    assert list(json.loads(run([*iterate, "--json"]))["schemes"]) == ["none", "second-half"]
    first, second, *_ = json.loads(run([*schedule, "--json"]))["spans"]
    assert first["bytes"] == second["bytes"] == 0
    traffic = Traffic("second-half", 4096, 1, (5_000_000,) * 4, Link(0, 10**9), buffer_bytes=8192)
    assert {piece.span for piece in traffic.pieces(100_000)} == {2}
    (tmp_path / "train.py").touch()
    train = ["castor", "train", "train.py", "--scheme", "second-half", "--print-job"]
    assert 'scheme = "second-half"' in run(train)
    (tmp_path / "second_half.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"plugin second-half = .* cannot be imported"):
        run(train)


def test_a_scheme_that_leaves_bytes_out_is_refused_by_name(
    added: Callable[[str], Any], tmp_path: Path
) -> None:
    iterate, _ = added("A scheme")
    file = tmp_path / "second_half.py"
    file.write_text(file.read_text().replace('scheme="second-half"', "spans=found.spans[:1]"))
    with pytest.raises(InputError, match="scheme pipelined returned 1 spans: expected"):
        run(iterate)


def test_an_importer_reads_a_file(added: Callable[[str], Any], tmp_path: Path) -> None:
    (command,) = added("An importer")
    (tmp_path / "calls.txt").write_text("3 17\n30 4\n")
    run(command)
    assert "10800,17,hardware,,," in (tmp_path / "calls.csv").read_text()
    (tmp_path / "calls.txt").write_text("3 17\nfour 4\n")
    with pytest.raises(InputError, match=r"calls.txt:2: expected HOUR HOST, not 'four 4'"):
        run([*command, "--overwrite"])


def test_a_figure_is_drawn_when_it_is_asked_for(added: Callable[[str], Any]) -> None:
    (command,) = added("A figure")
    figure = json.loads(run([*command, "--json"]))["figures"]["cpu-memory"]
    assert [row["point"] for row in figure["rows"]] == ["p3dn", "p4d"]
    assert Path(figure["pdf"]).stat().st_size > 1000


def test_an_operator_serves_a_request_of_the_root(
    added: Callable[[str], Any], tmp_path: Path
) -> None:
    (command,) = added("An operator")
    url, key = command[2], requests_prefix("gpt2") + "3-1"
    (tmp_path / "orders").mkdir()

    async def serve() -> list[str]:
        store = ModelStore(StoreModel(), lambda: 0.0)
        await store.transact(Txn((), (Put(key, "node-0"),)))
        job = JobToJoin("gpt2", "r", "etcd://there:2379", Path("secret"), tmp_path)
        said: list[str] = []
        tasks = BackgroundTasks()
        operator = open_operator(url, job)
        server = RequestServer(store, "gpt2", operator, spawn=tasks.spawn, say=said.append)
        server.serve([key], None, ())
        await tasks.wait()
        assert (await store.get_prefix(key))[0] == []
        return said

    assert asyncio.run(serve()) == ["a machine was asked for: ordered spare-3-1-1"]
    order = json.loads((tmp_path / "orders" / "spare-3-1-1.json").read_text())
    assert order == {"job": "gpt2", "store": "etcd://there:2379", "agent": "spare-3-1-1"}


def test_a_package_is_found_by_its_entry_points(recipe: Recipes, tmp_path: Path) -> None:
    """As installed: modules in a folder of the path, and beside them what says they are there."""
    groups: dict[str, list[str]] = {}
    for title in ("A strategy", "A scheme", "An importer", "A figure", "An operator", "An engine"):
        group, line = recipe(title, tmp_path).entry_point
        groups.setdefault(group, []).append(line)
    assert sorted(groups) == sorted(f"castor.{kind}" for kind in KINDS)
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    lines = [line for group, found in groups.items() for line in (f"[{group}]", *found)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    code = """
from castor_configs.plugins import KINDS, declared, load
found = {kind: declared(kind).values() for kind in KINDS}
print([str(one) for ones in found.values() for one in ones])
print([load(one) for kind in ("strategies", "schemes", "importers") for one in found[kind]])
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    for lines in groups.values():
        assert all(f"{line} (stranger)" in done.stdout for line in lines)
    for name in ("Periodic", "second_half", "import_pager"):
        assert name in done.stdout.splitlines()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_registry_that_tells_its_names(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registries = (STRATEGIES, SCHEMES, FORMATS, FIGURES, OPERATORS, ENGINES)
    (registry,) = [one for one in registries if one.kind == kind]
    monkeypatch.setenv(VARIABLE, f"{kind}.of-a-stranger = nowhere:NOTHING")
    assert [*registry] == [*registry.built_in, "of-a-stranger"]
    with pytest.raises(InputError, match="plugin of-a-stranger = nowhere:NOTHING"):
        registry.choose("of-a-stranger", "it")

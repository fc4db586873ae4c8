"""Sweeps: how a grid is read, checked and run, and that its files hang on nothing else."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_analysis.sweep.picture import draw_sweep, positions_of
from castor_analysis.sweep.points import PointOutcome, PointTask, run_point
from castor_analysis.sweep.run import Axis, SweepError, make_sweep, parse_axis, run_sweep
from castor_analysis.sweep.tables import sweep_csv, write_sweep
from castor_analysis.workers import Workers
from castor_configs.errors import InputError
from castor_sim.run import Engine, run_once
from castor_sim.setup import load_setup

EXPERIMENT = """
name = "small"
cluster = "p4d"
model = "gpt2-100b"
duration = "3d"
seeds = 2

[failures]
per_day = 4.0
hardware_share = 0.5

[strategies.gemini]
[strategies.strawman]
"""

GRID = ["failures.per_day=2,8", "replicas=1,2"]


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    file = tmp_path / "small.toml"
    file.write_text(EXPERIMENT)
    return str(file)


def point_files(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in (folder / "points").iterdir()}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("replicas=1,2,3", ("1", "2", "3")),
        ("replicas = 1 , 2", ("1", "2")),
        ("strategies.gemini.persist_every=1h,3h", ("1h", "3h")),
        (
            'replacement.provision=["1min","2min"],["4min","7min"]',
            ('["1min","2min"]', '["4min","7min"]'),
        ),
        (
            "failures.lemons={share=0.1,factor=3},{share=0.2,factor=3}",
            ("{share=0.1,factor=3}", "{share=0.2,factor=3}"),
        ),
        ("name='a,b',\"c,]\"", ("'a,b'", '"c,]"')),
        ("cluster=a=b", ("a=b",)),
    ],
)
def test_an_axis_is_split_at_its_outer_commas(text: str, values: tuple[str, ...]) -> None:
    assert parse_axis(text).values == values


@given(st.lists(st.integers(-9, 99) | st.lists(st.integers(0, 9), max_size=3), min_size=1))
def test_any_list_of_toml_values_is_read_back(values: list[int | list[int]]) -> None:
    written = list(dict.fromkeys(map(str, values)))
    assert parse_axis(f"key={','.join(written)}") == Axis("key", tuple(written))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("replicas", "key=value"),
        ("=1,2", "key=value"),
        ("replicas=", "missing"),
        ("replicas=1,,2", "missing"),
        ("replicas=1,2,", "missing"),
        ("replicas=1,2,1", "twice"),
        ("replicas=[1,2", "do not match"),
        ("replicas=1],2", "do not match"),
        ("name='a,2", "do not match"),
    ],
)
def test_a_bad_axis_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_axis(text)


def test_a_grid_is_the_product_and_its_parameters_are_told_apart() -> None:
    sweep = make_sweep("opt-175b", ["replicas=1,2", "failures.per_day=1,2,4"], ["seeds=3"])
    assert [point.name for point in sweep.points][:4] == [
        "replicas=1, failures.per_day=1",
        "replicas=1, failures.per_day=2",
        "replicas=1, failures.per_day=4",
        "replicas=2, failures.per_day=1",
    ]
    with pytest.raises(InputError, match="twice"):
        make_sweep("opt-175b", ["replicas=1", "replicas=2"])
    with pytest.raises(InputError, match="both fixed"):
        make_sweep("opt-175b", ["replicas=1"], ["replicas=2"])
    with pytest.raises(InputError, match="say what to vary"):
        make_sweep("opt-175b", [])
    numbers = ",".join(map(str, range(400)))
    with pytest.raises(InputError, match="at most"):
        make_sweep("opt-175b", [f"replicas={numbers}", f"seeds={numbers}"])


def test_each_point_says_what_simulate_would(experiment: str, tmp_path: Path) -> None:
    result = run_sweep(make_sweep(experiment, GRID), tmp_path / "out")
    rows = list(csv.DictReader(sweep_csv(result).splitlines()))
    assert len(rows) == 4 * 2
    for row in rows:
        changed = (f"failures.per_day={row['failures.per_day']}", f"replicas={row['replicas']}")
        setup = load_setup(experiment, changed)
        runs = [run_once(setup, row["strategy"], seed, Engine.JUMP) for seed in (1, 2)]
        mean = sum(run.useful_ns / run.wall_ns for run in runs) / 2
        assert float(row["effective_training_time_ratio.mean"]) == pytest.approx(mean, rel=1e-12)
        lost_s = sum(run.lost_progress_ns for run in runs) / 2e9
        assert float(row["wasted_time_s.lost_progress"]) == pytest.approx(lost_s)
        assert float(row["recovered_from.peer"]) == sum(run.recovered_peer for run in runs) / 2


@pytest.mark.long
def test_the_files_hang_neither_on_jobs_nor_on_what_was_there(
    experiment: str, tmp_path: Path
) -> None:
    sweep = make_sweep(experiment, GRID)
    one, two = tmp_path / "one", tmp_path / "two"
    first = run_sweep(sweep, one, jobs=1)
    write_sweep(first, one)
    assert (first.ran, first.kept) == (4, 0)
    # A part of the grid first, then the whole of it, in two processes.
    run_sweep(make_sweep(experiment, ["failures.per_day=8", "replicas=1,2"]), two, jobs=2)
    before = point_files(two)
    second = run_sweep(sweep, two, jobs=2)
    write_sweep(second, two)
    assert (second.ran, second.kept) == (2, 2)
    after = point_files(two)
    assert before.items() <= after.items(), "a finished point was written again"
    for name in ("sweep.csv", "sweep.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    for name in after:
        kept, again = (folder / "points" / name for folder in (one, two))
        assert kept.read_bytes() == again.read_bytes()


def test_a_finished_sweep_runs_nothing_and_a_changed_one_runs_again(
    experiment: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sweep = make_sweep(experiment, GRID)
    run_sweep(sweep, out)
    told: list[tuple[int, int]] = []
    again = run_sweep(sweep, out, begun=lambda missing, kept: told.append((missing, kept)))
    assert told == [(0, 4)]
    assert again.ran == 0
    # A comment changes nothing; a value does, wherever it stands.
    Path(experiment).write_text(EXPERIMENT + "\n# a remark\n")
    assert run_sweep(sweep, out).ran == 0
    Path(experiment).write_text(EXPERIMENT.replace("hardware_share = 0.5", "hardware_share = 0.6"))
    assert run_sweep(sweep, out).ran == 4


def test_a_change_of_the_model_the_cluster_or_a_strategys_own_code_runs_again(
    tmp_path: Path,
) -> None:
    own = tmp_path / "mine.py"
    code = (
        "from castor_sim.strategy_costs import StrategyCosts\n"
        "from castor_sim.strategies import Strategy\n"
        "class Mine(Strategy):\n"
        "    def costs(self, job):\n"
        "        return StrategyCosts(iteration_ns=job.iteration_ns, warm_up_ns=7)\n"
    )
    own.write_text(code)
    for kind in ("cluster", "model"):
        name = {"cluster": "p4d", "model": "gpt2-100b"}[kind]
        shipped = Path(__file__).parents[2] / "configs" / f"{kind}s" / f"{name}.toml"
        (tmp_path / f"{kind}.toml").write_text(shipped.read_text())
    text = EXPERIMENT.replace('"p4d"', '"cluster.toml"').replace('"gpt2-100b"', '"model.toml"')
    file = tmp_path / "own.toml"
    file.write_text(text + '[strategies.mine]\nkind = "mine.py:Mine"\n')
    sweep = make_sweep(str(file), ["replicas=1,2"])
    assert run_sweep(sweep, tmp_path / "out").ran == 2
    assert run_sweep(sweep, tmp_path / "out").ran == 0
    own.write_text(code.replace("warm_up_ns=7", "warm_up_ns=8_000_000_000"))
    os.utime(own, ns=(0, 0))  # past the clock of Python's own cache of compiled files
    assert run_sweep(sweep, tmp_path / "out").ran == 2
    # The price is in no profile, and still in what is kept.
    for kind, old, new in (
        ("cluster", '"20Gbps"', '"21Gbps"'),
        ("cluster", "gpu_hour_price = 4.10", "gpu_hour_price = 4.20"),
        ("model", '"62s"', '"63s"'),
    ):
        changed = tmp_path / f"{kind}.toml"
        changed.write_text(changed.read_text().replace(old, new))
        assert run_sweep(sweep, tmp_path / "out").ran == 2


def test_a_change_of_the_trace_runs_again(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    head = (
        "# name: t\n# machines: 16\n# span_s: 259200\ntime_s,machine,kind,duration_s,domain,cause\n"
    )
    trace.write_text(head + "1000,3,hardware,600,,\n")
    file = tmp_path / "replay.toml"
    text = EXPERIMENT.replace("per_day = 4.0\nhardware_share = 0.5", 'process = "trace"')
    file.write_text(text.replace("[strategies.gemini]", 'trace = "trace.csv"\n[strategies.gemini]'))
    sweep = make_sweep(str(file), ["replicas=1,2"])
    assert run_sweep(sweep, tmp_path / "out").ran == 2
    assert run_sweep(sweep, tmp_path / "out").ran == 0
    trace.write_text(head + "1000,3,hardware,600,,\n2000,4,software,,,\n")
    assert run_sweep(sweep, tmp_path / "out").ran == 2


def test_a_torn_point_is_run_again(experiment: str, tmp_path: Path) -> None:
    sweep = make_sweep(experiment, GRID)
    run_sweep(sweep, tmp_path)
    torn, foreign = sorted((tmp_path / "points").iterdir())[:2]
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    foreign.write_bytes(whole)
    assert run_sweep(sweep, tmp_path).ran == 2
    assert torn.read_bytes() == whole


def test_two_spellings_of_a_value_are_one_run_and_two_rows(experiment: str, tmp_path: Path) -> None:
    sweep = make_sweep(experiment, ["strategies.strawman.every=60min,1h"])
    result = run_sweep(sweep, tmp_path)
    assert len(set(result.keys)) == 1
    assert len(point_files(tmp_path)) == 1
    assert result.ran == 1
    assert len(sweep_csv(result).splitlines()) == 1 + 2 * 2


def test_a_bad_point_is_named_before_any_is_run(experiment: str, tmp_path: Path) -> None:
    sweep = make_sweep(experiment, ["failures.per_day=2,8", "replicas=2,17,-1"])
    with pytest.raises(InputError) as raised:
        run_sweep(sweep, tmp_path / "out", jobs=1)
    said = str(raised.value)
    assert "4 of 6 points" in said
    assert "point failures.per_day=2, replicas=17: " in said
    assert "point failures.per_day=8, replicas=-1: " in said
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_everywhere_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        run_sweep(make_sweep("gpt2-100b-p4", ["replicas=1,2,3"]), tmp_path)
    assert str(raised.value).count("did you mean") == 1


def test_a_point_that_fails_as_it_runs_leaves_the_others_finished(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(task: PointTask) -> PointOutcome:
        if "replicas=1" in task.overrides:
            return PointOutcome(fault="MemoryError: ")
        return run_point(task)

    monkeypatch.setattr("castor_analysis.sweep.run.run_point", failing)
    with pytest.raises(SweepError, match=r"2 of 4 points failed(.|\n)*replicas=1: MemoryError"):
        run_sweep(make_sweep(experiment, GRID), tmp_path)
    assert len(point_files(tmp_path)) == 2
    monkeypatch.undo()
    assert run_sweep(make_sweep(experiment, GRID), tmp_path).ran == 2


def test_a_fault_inside_a_run_is_an_outcome(tmp_path: Path) -> None:
    outcome = run_point(PointTask("nosuch", (), tmp_path))
    assert outcome.key == ""
    assert outcome.fault.startswith("InputError: nosuch")


def test_workers_give_every_result_with_its_place() -> None:
    with Workers(2) as workers:
        assert sorted(workers.map(abs, [-3, 1, -2])) == [(0, 3), (1, 1), (2, 2)]
        assert sorted(workers.map(len, ["ab", ""])) == [(0, 2), (1, 0)]
    with pytest.raises(ValueError, match="1 or more"):
        Workers(0)


def test_json_has_numbers_as_numbers_and_all_else_as_written(
    experiment: str, tmp_path: Path
) -> None:
    sweep = make_sweep(experiment, ["replicas=2", "strategies.strawman.every=1h"], ["seeds=1"])
    document = write_sweep(run_sweep(sweep, tmp_path), tmp_path)
    assert document["parameters"] == {"replicas": [2], "strategies.strawman.every": ["1h"]}
    assert document["set"] == ["seeds=1"]
    point = document["points"][0]
    assert point["strategies"]["gemini"]["replications"] == 1
    assert json.loads((tmp_path / "sweep.json").read_text()) == document
    kept = json.loads((tmp_path / "points" / f"{point['key']}.json").read_text())
    again = tmp_path / "again"
    again.mkdir()
    for name in ("experiment", "cluster", "model"):
        (again / f"{name}.toml").write_text(kept[name])
    setup = load_setup(again / "experiment.toml", ('cluster="cluster.toml"', 'model="model.toml"'))
    ratio = run_once(setup, "gemini", 1).useful_ns / setup.horizon_ns
    assert ratio == point["strategies"]["gemini"]["effective_training_time_ratio"]["mean"]


@pytest.mark.parametrize(
    ("values", "positions", "logarithmic"),
    [
        (("1", "2", "8"), [1.0, 2.0, 8.0], False),
        (("1", "32"), [1.0, 32.0], True),
        (("0", "32"), [0.0, 32.0], False),
        (("1h", '"90min"'), [3600.0, 5400.0], False),
        (("1GB", "20GB"), [1e9, 2e10], True),
        (("20Gbps", "40Gbps"), [2e10, 4e10], False),
        (("1%", "2%"), [0.01, 0.02], False),
        (("group", "ring", "domains"), [0.0, 1.0, 2.0], False),
        (("1h", "60min"), [0.0, 1.0], False),
        (("1", "ring"), [0.0, 1.0], False),
    ],
)
def test_values_stand_where_they_belong(
    values: tuple[str, ...], positions: list[float], logarithmic: bool
) -> None:
    found, log = positions_of(values)
    assert found == pytest.approx(positions)
    assert log == logarithmic


@pytest.mark.long
def test_one_or_two_parameters_are_drawn_the_same_each_time(
    experiment: str, tmp_path: Path
) -> None:
    over = [*GRID, "strategies.gemini.every=1,2"]
    for count, drawn in ((1, True), (2, True), (3, False)):
        result = run_sweep(make_sweep(experiment, over[:count]), tmp_path)
        stem = tmp_path / f"picture-{count}"
        assert draw_sweep(result, stem) is drawn
        assert stem.with_suffix(".pdf").exists() is drawn
        if drawn:
            before = stem.with_suffix(".png").read_bytes()
            draw_sweep(result, stem)
            assert stem.with_suffix(".png").read_bytes() == before

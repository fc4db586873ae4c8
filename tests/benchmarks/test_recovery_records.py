"""What the recovery benchmark reads out of records, and its slow storage; nothing is timed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "recovery"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"recovery_benchmark_{name}", FOLDER / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


rank_log = load("rank_log")
samples = load("samples")
throttled_storage = load("throttled_storage")


def life(pid: int, start_s: int, first: int, count: int, retrieval_s: float = 0.0) -> list[dict]:
    """A rank that starts, loads iteration `first`, and ends an iteration a second."""
    second = 10**9
    at = start_s * second
    records = [
        {"kind": "started", "time_ns": at, "pid": pid, "rollbacks": 0},
        {"kind": "built", "time_ns": at + second, "pid": pid, "rollbacks": 0},
        {
            "kind": "loaded",
            "time_ns": at + 2 * second,
            "pid": pid,
            "rollbacks": 0,
            "iteration": first,
            "seconds": retrieval_s,
        },
    ]
    for k in range(1, count + 1):
        ended = {
            "kind": "iteration_ended",
            "time_ns": at + (2 + k) * second,
            "pid": pid,
            "rollbacks": 0,
        }
        records.append(ended | {"iteration": first + k})
    return records


def test_an_outage_ends_with_the_first_iteration_that_had_not_been_done():
    # 10 iterations end at 13 s; killed at 13.5 s; restart at 20 s from iteration 6.
    logs = [life(1, 1, 0, 10) + life(2, 20, 6, 6, 0.5), life(3, 1, 0, 10) + life(4, 21, 6, 6, 0.7)]
    outage = rank_log.find_outage(logs, 13_500_000_000)
    assert (outage.reached, outage.resumed, outage.lost) == (10, 6, 4)
    assert outage.started_s == pytest.approx(7.5)
    assert outage.loaded_s == pytest.approx(9.5)
    assert outage.first_s == pytest.approx(9.5)
    assert outage.new_s == pytest.approx(13.5)
    assert outage.retrieval_s == 0.7


def test_no_outage_is_found_before_a_new_iteration():
    logs = [life(1, 1, 0, 10) + life(2, 20, 6, 4)]
    assert rank_log.find_outage(logs, 13_500_000_000) is None


def test_an_iteration_that_the_old_process_ends_after_the_kill_is_not_new():
    logs = [life(1, 1, 0, 11) + life(2, 20, 11, 2)]
    outage = rank_log.find_outage(logs, 13_500_000_000)
    assert (outage.reached, outage.lost) == (11, 0)
    assert outage.new_s == pytest.approx(9.5)


def test_a_spare_that_was_built_just_before_the_kill_has_not_trained():
    # The trainer's 10 iterations end at 13 s, the spare has stood since 12.5 s, killed at 13.2 s.
    trainer, spare = life(1, 1, 0, 10), life(2, 12, 10, 3)
    spare[1]["time_ns"] = 13_100_000_000
    logs = [sorted([*trainer, *spare], key=lambda record: record["time_ns"])]
    outage = rank_log.find_outage(logs, 13_200_000_000)
    assert (outage.reached, outage.lost) == (10, 0)
    assert outage.built_s == 0.0
    assert outage.new_s == pytest.approx(1.8)


def test_half_a_line_of_a_killed_rank_is_skipped(tmp_path):
    log = rank_log.RankLog(tmp_path, 0)
    log.write("started")
    with (tmp_path / "rank-0.jsonl").open("a") as file:
        file.write('{"kind": "iter')
    assert [record["kind"] for record in rank_log.read_logs(tmp_path, 1)[0]] == ["started"]


def test_a_checkpoint_counts_once_all_ranks_have_marked_it(tmp_path):
    storage = throttled_storage.ThrottledStorage(tmp_path / "storage", 1e12)
    source = tmp_path / "part.pt"
    source.write_bytes(bytes(range(256)) * 1000)
    for tag in ("iteration-9", "iteration-10"):
        assert storage.write([source], tag) == 256_000
    for tag, rank in (("iteration-9", 0), ("iteration-9", 1), ("iteration-10", 0)):
        storage.mark_whole(tag, rank)
    assert storage.newest_whole(2) == "iteration-9"
    storage.mark_whole("iteration-10", 1)
    assert storage.newest_whole(2) == "iteration-10"
    storage.read("iteration-10", ["part.pt"], tmp_path / "back")
    assert (tmp_path / "back" / "part.pt").read_bytes() == source.read_bytes()


def test_a_quantile_is_a_value_that_was_measured():
    spread = samples.Spread.of([3.0, 1.0, 2.0])
    assert (spread.quantile(0.0), spread.quantile(0.5), spread.quantile(0.99)) == (1.0, 2.0, 3.0)
    assert spread.text(1) == "2.0 (1.0 to 3.0)"
    with pytest.raises(ValueError, match="nothing was measured"):
        samples.Spread.of([])

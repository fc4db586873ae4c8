"""The folder of persistent checkpoints: whole or not counted, whatever dies, and pruned safely."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castor_runtime.pacing import VARIABLE, Pacer, storage_pacer
from castor_runtime.persistent.durable_files import file_digest, writing
from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.manifest import (
    MANIFEST_NAME,
    Attempt,
    DamagedCheckpointError,
    ForeignStorageError,
    Manifest,
    Receipt,
    read_receipt,
    receipt_name,
    write_receipt,
)
from castor_runtime.persistent.retention import prune, publish_and_prune
from castor_runtime.persistent.storage import (
    attempt_folder,
    checkpoint_manifest,
    complete_iterations,
    damaged_files,
    publish_if_complete,
    require_own_folder,
    set_aside_damaged,
    start_attempt,
    tag,
)

pytestmark = pytest.mark.long  # all of it starts real processes, many times

FINGERPRINT = "0f" * 16


def attempt_of(iteration: int, generation: int = 1, ranks: int = 2, job: str = "job") -> Attempt:
    return Attempt(job, FINGERPRINT, iteration, generation, ranks)


def write_rank(folder: Path, attempt: Attempt, rank: int, pacer: Pacer | None = None) -> None:
    tier = LocalTier(folder)
    staging = start_attempt(tier, attempt)
    assert staging is not None
    files = []
    for kind in ("model", "optim"):
        name = f"rank_{rank}_{kind}.pt"
        with tier.writing(f"{staging}/{name}", pacer) as file:
            for part in range(8):
                file.write(f"{attempt} {rank} {kind} {part} ".encode() * 40)
        files.append(file.record(name))
    write_receipt(tier, staging, Receipt(attempt, rank, tuple(files)))


def complete(folder: Path, attempt: Attempt) -> None:
    for rank in range(attempt.world_size):
        write_rank(folder, attempt, rank)
    assert publish_if_complete(LocalTier(folder), attempt) is not None


def test_counts_only_once_all_ranks_have_written(tmp_path: Path) -> None:
    attempt = attempt_of(300, ranks=3)
    for rank in (2, 0):
        write_rank(tmp_path, attempt, rank)
        assert publish_if_complete(LocalTier(tmp_path), attempt) is None
        assert complete_iterations(LocalTier(tmp_path)) == ()
        assert not (tmp_path / "latest").exists()
        assert not (tmp_path / tag(300)).exists()
    write_rank(tmp_path, attempt, 1)
    assert complete_iterations(LocalTier(tmp_path)) == ()
    manifest = publish_if_complete(LocalTier(tmp_path), attempt)
    assert manifest is not None
    assert complete_iterations(LocalTier(tmp_path)) == (300,)
    assert complete_iterations(LocalTier(tmp_path), FINGERPRINT) == (300,)
    assert complete_iterations(LocalTier(tmp_path), "ab" * 16) == ()
    assert (tmp_path / "latest").read_text() == "global_step300"
    assert damaged_files(LocalTier(tmp_path), manifest) == []
    assert publish_if_complete(LocalTier(tmp_path), attempt) == manifest
    assert start_attempt(LocalTier(tmp_path), attempt) is None
    assert manifest.total_bytes == sum(
        (tmp_path / tag(300) / record.name).stat().st_size for record in manifest.files()
    )


def test_attempts_of_two_generations_never_mix(tmp_path: Path) -> None:
    write_rank(tmp_path, attempt_of(5, generation=1), 0)
    write_rank(tmp_path, attempt_of(5, generation=2), 1)
    for generation in (1, 2):
        assert publish_if_complete(LocalTier(tmp_path), attempt_of(5, generation)) is None
    write_rank(tmp_path, attempt_of(5, generation=2), 0)
    manifest = publish_if_complete(LocalTier(tmp_path), attempt_of(5, generation=2))
    assert manifest is not None
    assert manifest.attempt.generation == 2
    assert damaged_files(LocalTier(tmp_path), manifest) == []
    # The slow machine of the first generation comes late: what counts already stays.
    assert publish_if_complete(LocalTier(tmp_path), attempt_of(5, generation=1)) == manifest


@pytest.mark.parametrize(
    "other", [attempt_of(5, generation=2), attempt_of(6), attempt_of(5, job="another")]
)
def test_a_manifest_is_of_one_attempt(other: Attempt) -> None:
    receipts = tuple(
        Receipt(attempt, rank, ()) for rank, attempt in enumerate((attempt_of(5), other))
    )
    with pytest.raises(ValueError, match="rank 1 is of another attempt"):
        Manifest(attempt_of(5), receipts)


def test_machines_that_end_together_publish_once(tmp_path: Path) -> None:
    for iteration in range(20):
        attempt = attempt_of(iteration, ranks=4)
        barrier = threading.Barrier(4)
        results: list[object] = []

        def machine(
            rank: int,
            attempt: Attempt = attempt,
            barrier: threading.Barrier = barrier,
            results: list[object] = results,
        ) -> None:
            write_rank(tmp_path, attempt, rank)
            barrier.wait()
            results.append(publish_if_complete(LocalTier(tmp_path), attempt))

        threads = [threading.Thread(target=machine, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert None not in results
        manifest = checkpoint_manifest(LocalTier(tmp_path), iteration, "job", FINGERPRINT)
        assert damaged_files(LocalTier(tmp_path), manifest) == []
        assert (tmp_path / "latest").read_text() == tag(iteration)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_persistent_storage import attempt_of, write_rank
from castor_runtime.pacing import Pacer
from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.retention import publish_and_prune
folder = Path(sys.argv[1])
print("ready", flush=True)
for iteration in range(1, 1000):
    attempt = attempt_of(iteration)
    for rank in range(2):
        write_rank(folder, attempt, rank, Pacer(4e6))
    publish_and_prune(LocalTier(folder), attempt, keep=2)
    print(iteration, flush=True)
"""


def test_kill_9_at_any_moment_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    script = WRITER.format(here=str(Path(__file__).parent))
    moments = random.Random(7)
    for trial in range(6):
        folder = tmp_path / str(trial)
        folder.mkdir()
        with subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(3):  # "ready" and two checkpoints
                writer.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.06))
            os.kill(writer.pid, signal.SIGKILL)
            said = [int(line) for line in writer.stdout.read().split()]
        found = complete_iterations(LocalTier(folder), FINGERPRINT)
        assert found
        assert len(found) <= 3  # two kept, and one published but not yet pruned
        if said:
            assert found[-1] >= said[-1]
        for iteration in found:
            manifest = checkpoint_manifest(LocalTier(folder), iteration, "job", FINGERPRINT)
            assert damaged_files(LocalTier(folder), manifest) == []
        assert (folder / "latest").read_text() in {tag(iteration) for iteration in found}
        # The next generation goes on, and clears away what was left.
        complete(folder, attempt_of(2000, generation=2))
        assert publish_and_prune(LocalTier(folder), attempt_of(2000, generation=2), keep=1)
        assert complete_iterations(LocalTier(folder)) == (2000,)
        left = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.parent for path in left} == {folder, folder / tag(2000)}
        assert not [path for path in left if path.name.endswith(".unfinished")]


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_is_found_by_name(tmp_path: Path, where: str) -> None:
    complete(tmp_path, attempt_of(7))
    manifest = checkpoint_manifest(LocalTier(tmp_path), 7, "job", FINGERPRINT)
    for record in manifest.files():
        path = tmp_path / tag(7) / record.name
        place = {"first": 0, "middle": record.size_bytes // 2, "last": record.size_bytes - 1}[where]
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        assert damaged_files(LocalTier(tmp_path), manifest) == [record.name]
        rank = int(record.name.split("_")[1])
        assert damaged_files(LocalTier(tmp_path), manifest, [rank]) == [record.name]
        assert damaged_files(LocalTier(tmp_path), manifest, [1 - rank]) == []
        content[place] ^= 1
        path.write_bytes(content)
    assert damaged_files(LocalTier(tmp_path), manifest) == []


def test_every_flipped_byte_of_the_manifest_is_found(tmp_path: Path) -> None:
    complete(tmp_path, attempt_of(7))
    path = tmp_path / tag(7) / MANIFEST_NAME
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if content[place] in b" \n" and json.loads(content) == _parsed(path):
            continue  # white space became other white space
        with pytest.raises((DamagedCheckpointError, ForeignStorageError), match=str(path)):
            checkpoint_manifest(LocalTier(tmp_path), 7, "job", FINGERPRINT)
        assert complete_iterations(LocalTier(tmp_path)) == ()


def _parsed(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_a_missing_or_short_file_does_not_count(tmp_path: Path) -> None:
    complete(tmp_path, attempt_of(7))
    complete(tmp_path, attempt_of(8))
    path = tmp_path / tag(8) / "rank_1_optim.pt"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert complete_iterations(LocalTier(tmp_path)) == (7,)
    path.unlink()
    assert complete_iterations(LocalTier(tmp_path)) == (7,)
    assert damaged_files(
        LocalTier(tmp_path), checkpoint_manifest(LocalTier(tmp_path), 8, "job", FINGERPRINT)
    ) == ["rank_1_optim.pt"]


def test_a_receipt_without_its_file_is_not_published(tmp_path: Path) -> None:
    attempt = attempt_of(7)
    for rank in range(2):
        write_rank(tmp_path, attempt, rank)
    ((tmp_path / attempt_folder(LocalTier(tmp_path), attempt)) / "rank_0_model.pt").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"rank_0_model\.pt"):
        publish_if_complete(LocalTier(tmp_path), attempt)
    assert complete_iterations(LocalTier(tmp_path)) == ()


def test_a_damaged_checkpoint_is_set_aside_and_can_be_written_anew(tmp_path: Path) -> None:
    complete(tmp_path, attempt_of(6))
    complete(tmp_path, attempt_of(7))
    manifest = checkpoint_manifest(LocalTier(tmp_path), 7, "job", FINGERPRINT)
    aside = set_aside_damaged(LocalTier(tmp_path), manifest)
    assert aside is not None
    assert (tmp_path / aside).is_dir()
    assert set_aside_damaged(LocalTier(tmp_path), manifest) is None
    assert complete_iterations(LocalTier(tmp_path)) == (6,)
    assert (tmp_path / "latest").read_text() == tag(6)
    complete(tmp_path, attempt_of(7, generation=2))
    assert complete_iterations(LocalTier(tmp_path)) == (6, 7)
    assert (
        set_aside_damaged(LocalTier(tmp_path), manifest) is None
    )  # the new one is not the damaged one
    assert complete_iterations(LocalTier(tmp_path)) == (6, 7)


def test_foreign_checkpoints_are_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    complete(tmp_path, attempt_of(7, job="other"))
    (tmp_path / tag(9)).mkdir()
    (tmp_path / tag(9) / "user.pt").write_bytes(b"saved by plain DeepSpeed")
    with pytest.raises(ForeignStorageError, match=r"global_step7 is .* job 'other'.*'job'"):
        require_own_folder(LocalTier(tmp_path), "job", FINGERPRINT)
    with pytest.raises(ForeignStorageError, match=f"{FINGERPRINT}, this job has {'ab' * 16}"):
        require_own_folder(LocalTier(tmp_path), "other", "ab" * 16)
    require_own_folder(LocalTier(tmp_path), "other", FINGERPRINT)
    with pytest.raises(ForeignStorageError, match=r"global_step7"):
        checkpoint_manifest(LocalTier(tmp_path), 7, "job", FINGERPRINT)
    with pytest.raises(ForeignStorageError, match=r"global_step7"):
        start_attempt(LocalTier(tmp_path), attempt_of(7))
    with pytest.raises(ForeignStorageError, match=r"global_step9 exists and Castor did not"):
        start_attempt(LocalTier(tmp_path), attempt_of(9))
    assert prune(LocalTier(tmp_path), job="job", keep=1, generation=9) == []
    assert complete_iterations(LocalTier(tmp_path)) == (7,)


def test_a_job_name_stays_in_its_folder(tmp_path: Path) -> None:
    for job in ("..", ".", "a/b", "../../x"):
        staging = (tmp_path / attempt_folder(LocalTier(tmp_path), attempt_of(1, job=job))).resolve()
        assert staging.is_relative_to(tmp_path / ".castor" / "writing")
        assert staging.parent.parent == tmp_path / ".castor" / "writing"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    iterations=st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True),
    partial=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3)), max_size=4, unique=True),
    keep=st.integers(1, 4),
    generation=st.integers(2, 3),
    protect=st.sets(st.integers(1, 40), max_size=2),
)
def test_retention_keeps_the_newest_and_drops_what_nobody_finishes(
    tmp_path_factory: pytest.TempPathFactory,
    iterations: list[int],
    partial: list[tuple[int, int]],
    keep: int,
    generation: int,
    protect: set[int],
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    for iteration in iterations:
        complete(folder, attempt_of(iteration, generation=2, ranks=1))
    unfinished = [pair for pair in partial if pair[0] not in iterations]
    for iteration, made_in in unfinished:
        write_rank(folder, attempt_of(iteration, generation=made_in), 0)
    prune(LocalTier(folder), job="job", keep=keep, generation=generation, protect=protect)
    expected = set(sorted(iterations)[-keep:]) | (protect & set(iterations))
    assert set(complete_iterations(LocalTier(folder))) == expected
    assert max(iterations) in expected
    newest = max(iterations)
    for iteration, made_in in unfinished:
        alive = made_in >= generation and not (made_in == 2 and iteration <= newest)
        attempt = attempt_of(iteration, generation=made_in)
        assert (
            read_receipt(LocalTier(folder), attempt_folder(LocalTier(folder), attempt), 0)
            is not None
        ) == alive
    assert not list((folder / ".castor" / "removing").glob("*"))


def test_what_a_dead_writer_left_is_not_published(tmp_path: Path) -> None:
    attempt = attempt_of(3)
    write_rank(tmp_path, attempt, 0)
    (
        (tmp_path / attempt_folder(LocalTier(tmp_path), attempt))
        / ".rank_1_model.pt.0123.unfinished"
    ).write_bytes(b"half")
    write_rank(tmp_path, attempt, 1)
    assert publish_if_complete(LocalTier(tmp_path), attempt) is not None
    assert not list((tmp_path / tag(3)).glob(".*"))


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep >= 1, got 0"):
        prune(LocalTier(tmp_path), job="job", keep=0, generation=1)


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with writing(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with writing(path) as file:
        file.write(b"new ")
        file.write(memoryview(b"content"))
    record = file.record("file")
    assert path.read_bytes() == b"new content"
    assert file_digest(path) == (record.size_bytes, record.xxh3_128)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 5)), min_size=1, max_size=20))
def test_the_pacer_holds_the_rate_and_wastes_none(pieces: list[tuple[int, float]]) -> None:
    rate = 1e8
    now_s = 0.0

    def sleep(wait_s: float) -> None:
        nonlocal now_s
        assert wait_s >= 0
        now_s += wait_s

    pacer = Pacer(rate, clock=lambda: now_s, sleep=sleep)
    busy_s = idle_s = 0.0
    for size_bytes, pause_s in pieces:
        now_s += pause_s
        idle_s += pause_s
        pacer.pace(size_bytes)
        busy_s += size_bytes / rate
        assert now_s >= busy_s - 1e-6
        assert now_s <= busy_s + idle_s + 1e-6


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_is_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="a rate is positive"):
        Pacer(rate)


class Halved(Pacer):
    """Storage of half the speed that is asked for, as a host may have it."""

    def __init__(self, *, reading: bool, bytes_per_s: float) -> None:
        super().__init__(bytes_per_s / 2)
        self.reading = reading


def test_a_host_names_what_paces_its_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(storage_pacer(bytes_per_s=8.0)) is Pacer
    monkeypatch.setitem(sys.modules, "a_host", SimpleNamespace(Halved=Halved))
    monkeypatch.setenv(VARIABLE, "a_host:Halved")
    pacer = storage_pacer(reading=True, bytes_per_s=8.0)
    assert isinstance(pacer, Halved)
    assert pacer.reading


def test_a_damaged_receipt_is_named(tmp_path: Path) -> None:
    attempt = attempt_of(1)
    for rank in range(attempt.world_size):
        write_rank(tmp_path, attempt, rank)
    path = tmp_path / attempt_folder(LocalTier(tmp_path), attempt) / receipt_name(0)
    path.write_text(path.read_text().replace('"rank": 0', '"rank": 1'))
    with pytest.raises(DamagedCheckpointError, match=r"castor_rank_0_receipt\.json is damaged"):
        publish_if_complete(LocalTier(tmp_path), attempt)

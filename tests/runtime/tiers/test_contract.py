"""What checkpoints need of a tier, of each kind: a folder, and a bucket."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from castor_runtime.persistent.durable_files import FileRecord
from castor_runtime.persistent.manifest import (
    MANIFEST_NAME,
    Attempt,
    DamagedCheckpointError,
    ForeignStorageError,
    Receipt,
    read_receipt,
    write_receipt,
)
from castor_runtime.persistent.retention import (
    abandon,
    drop_cut_off,
    is_abandoned,
    prune,
    publish_and_prune,
    under_way,
)
from castor_runtime.persistent.storage import (
    attempt_folder,
    checkpoint_manifest,
    complete_iterations,
    damaged_files,
    files_folder,
    publish_if_complete,
    require_own_folder,
    set_aside_damaged,
    start_attempt,
    tag,
)
from castor_runtime.persistent.tier import FilesDamagedError, Tier

FINGERPRINT = "0f" * 16


def attempt_of(iteration: int, generation: int = 1, ranks: int = 2, job: str = "job") -> Attempt:
    return Attempt(job, FINGERPRINT, iteration, generation, ranks, run="ab" * 8)


def write_rank(tier: Tier, attempt: Attempt, rank: int) -> FileRecord:
    staging = start_attempt(tier, attempt)
    assert staging is not None
    name = f"rank_{rank}.pt"
    with tier.writing(f"{staging}/{name}") as file:
        for part in range(8):
            file.write(f"{attempt} {rank} {part} ".encode() * 40)
    write_receipt(tier, staging, Receipt(attempt, rank, (file.record(name),)))
    return file.record(name)


def complete(tier: Tier, attempt: Attempt) -> None:
    for rank in range(attempt.world_size):
        write_rank(tier, attempt, rank)
    assert publish_if_complete(tier, attempt) is not None


def test_a_checkpoint_counts_once_all_ranks_have_written(tier: Tier) -> None:
    attempt = attempt_of(300)
    assert complete_iterations(tier) == ()
    write_rank(tier, attempt, 1)
    assert publish_if_complete(tier, attempt) is None
    write_rank(tier, attempt, 0)
    assert complete_iterations(tier) == ()
    manifest = publish_if_complete(tier, attempt)
    assert manifest is not None
    assert complete_iterations(tier, FINGERPRINT) == (300,)
    assert complete_iterations(tier, "ab" * 16) == ()
    assert damaged_files(tier, manifest) == []
    assert publish_if_complete(tier, attempt) == manifest
    assert start_attempt(tier, attempt) is None
    # Who copies the tier to a folder has a checkpoint of plain DeepSpeed.
    assert tier.read("latest").decode() == files_folder(tier, attempt)
    with tier.whole(files_folder(tier, attempt), manifest.files([1]), tag(300)) as folder:
        assert folder.name == tag(300)
        assert (folder / "rank_1.pt").stat().st_size == manifest.files([1])[0].size_bytes


def test_attempts_of_two_generations_never_mix_and_the_first_that_counts_stays(tier: Tier) -> None:
    write_rank(tier, attempt_of(5, generation=1), 0)
    write_rank(tier, attempt_of(5, generation=2), 1)
    assert publish_if_complete(tier, attempt_of(5, generation=1)) is None
    write_rank(tier, attempt_of(5, generation=2), 0)
    manifest = publish_if_complete(tier, attempt_of(5, generation=2))
    assert manifest is not None
    assert manifest.attempt.generation == 2
    assert publish_if_complete(tier, attempt_of(5, generation=1)) == manifest
    with pytest.raises((FileExistsError, FileNotFoundError)):
        tier.publish(attempt_folder(tier, attempt_of(5)), tag(5), MANIFEST_NAME, b"another")
    assert checkpoint_manifest(tier, 5, "job", FINGERPRINT) == manifest


def test_machines_that_end_together_publish_once(tier: Tier) -> None:
    attempt = attempt_of(7, ranks=3)
    barrier = threading.Barrier(3)
    results: list[object] = []

    def machine(rank: int) -> None:
        write_rank(tier, attempt, rank)
        barrier.wait()
        results.append(publish_if_complete(tier, attempt))

    threads = [threading.Thread(target=machine, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manifest = checkpoint_manifest(tier, 7, "job", FINGERPRINT)
    assert results == [manifest] * 3
    assert damaged_files(tier, manifest) == []


def test_the_newest_stay_and_what_nobody_finishes_goes(tier: Tier) -> None:
    for iteration in (10, 20, 30):
        complete(tier, attempt_of(iteration))
    write_rank(tier, attempt_of(15), 0)  # not newer than what counts
    write_rank(tier, attempt_of(40), 0)  # under way
    prune(tier, job="job", keep=2, generation=1)
    assert complete_iterations(tier) == (20, 30)
    for iteration in (20, 30):
        assert damaged_files(tier, checkpoint_manifest(tier, iteration, "job", FINGERPRINT)) == []
    for iteration, alive in ((10, False), (15, False), (40, True)):
        folder = attempt_folder(tier, attempt_of(iteration))
        assert (read_receipt(tier, folder, 0) is not None) == alive
    drop_cut_off(tier, "job", 2)  # another generation: what the first had under way was cut off
    assert read_receipt(tier, attempt_folder(tier, attempt_of(40)), 0) is None
    assert complete_iterations(tier) == (20, 30)
    assert publish_and_prune(tier, attempt_of(30), keep=1)
    assert complete_iterations(tier) == (30,)


def test_while_one_is_under_way_another_is_not_begun(tier: Tier) -> None:
    complete(tier, attempt_of(10))
    write_rank(tier, attempt_of(5), 0)  # can be completed no more: a newer one counts
    assert under_way(tier, attempt_of(20)) == []
    write_rank(tier, attempt_of(20), 0)
    assert under_way(tier, attempt_of(20)) == []
    assert under_way(tier, attempt_of(30)) == [20]
    assert under_way(tier, attempt_of(30, generation=2)) == []
    abandon(tier, attempt_of(20))
    assert under_way(tier, attempt_of(30)) == []
    complete(tier, attempt_of(20))
    assert under_way(tier, attempt_of(30)) == []


def test_what_one_machine_gives_up_the_others_see(tier: Tier) -> None:
    attempt = attempt_of(10)
    write_rank(tier, attempt, 0)
    assert not is_abandoned(tier, attempt)
    abandon(tier, attempt)
    assert is_abandoned(tier, attempt)
    assert publish_if_complete(tier, attempt) is None
    complete(tier, attempt)  # begun anew
    assert not is_abandoned(tier, attempt)
    assert complete_iterations(tier) == (10,)


def test_a_file_that_is_not_as_it_was_written_is_found_by_name(tier: Tier) -> None:
    complete(tier, attempt_of(6))
    complete(tier, attempt_of(7))
    manifest = checkpoint_manifest(tier, 7, "job", FINGERPRINT)
    folder = files_folder(tier, manifest.attempt)
    whole = tier.read(f"{folder}/rank_1.pt")
    tier.write(f"{folder}/rank_1.pt", whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    assert complete_iterations(tier) == (6, 7)  # its size is right
    assert damaged_files(tier, manifest) == ["rank_1.pt"]
    assert damaged_files(tier, manifest, [0]) == []
    reading = tier.whole(folder, manifest.files(), tag(7))
    with pytest.raises(FilesDamagedError, match=r"rank_1\.pt"), reading:
        pass
    tier.write(f"{folder}/rank_1.pt", whole[:-1])
    assert complete_iterations(tier) == (6,)
    tier.delete(f"{folder}/rank_1.pt")
    assert damaged_files(tier, manifest) == ["rank_1.pt"]
    aside = set_aside_damaged(tier, manifest)
    assert aside == "global_step7-g1.damaged"
    assert set_aside_damaged(tier, manifest) is None
    assert complete_iterations(tier) == (6,)
    complete(tier, attempt_of(7, generation=2))
    assert complete_iterations(tier) == (6, 7)
    assert set_aside_damaged(tier, manifest) is None  # the new one is not the damaged one
    prune(tier, job="job", keep=1, generation=2)
    assert aside in tier.folders("")  # it may be of use to somebody
    assert read_receipt(tier, folder if folder != tag(7) else aside, 0) is not None


def test_a_damaged_manifest_is_no_checkpoint(tier: Tier) -> None:
    complete(tier, attempt_of(7))
    name = f"{tag(7)}/{MANIFEST_NAME}"
    tier.write(name, tier.read(name).replace(b'"rank_0.pt"', b'"rank_9.pt"'))
    with pytest.raises(DamagedCheckpointError, match="digest does not match"):
        checkpoint_manifest(tier, 7, "job", FINGERPRINT)
    assert complete_iterations(tier) == ()


def test_what_is_not_this_jobs_is_refused_by_name_and_left_alone(tier: Tier) -> None:
    complete(tier, attempt_of(7, job="a/../other"))
    tier.begin(tag(9))
    tier.write(f"{tag(9)}/user.pt", b"saved by plain DeepSpeed")
    with pytest.raises(ForeignStorageError, match=r"global_step7 is .* job 'a/../other'.*'job'"):
        require_own_folder(tier, "job", FINGERPRINT)
    with pytest.raises(ForeignStorageError, match=r"global_step7"):
        start_attempt(tier, attempt_of(7))
    with pytest.raises(ForeignStorageError, match=r"global_step9 exists and Castor did not"):
        start_attempt(tier, attempt_of(9))
    assert prune(tier, job="job", keep=1, generation=9) == []
    assert complete_iterations(tier) == (7,)


def test_what_fails_while_it_is_written_is_not_there(tier: Tier) -> None:
    tier.begin("folder")

    def fail() -> None:
        with tier.writing("folder/file") as file:
            file.write(bytes(20 << 20))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert tier.files("folder") == {}
    with pytest.raises(FileNotFoundError):
        tier.read("folder/file")


def test_a_file_of_many_parts_is_what_was_written(tier: Tier, tmp_path: Path) -> None:
    tier.begin("folder")
    with tier.writing("folder/file") as file:
        for number in range(5):
            file.write(bytes([number]) * (7 << 20))
    record = file.record("file")
    assert tier.files("folder")["file"].size_bytes == record.size_bytes == 35 << 20
    assert tier.digest("folder/file") == record.content
    with tier.whole("folder", [record], "copy") as folder:
        assert (folder / "file").read_bytes()[-1] == 4

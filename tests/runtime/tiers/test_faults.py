"""What a tier that is not here may do to us, and what is said of it."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from castor_lab.faulty_proxy import RESET, FaultyProxy
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import PersistenceOptions
from castor_policy.option import OptionError
from castor_runtime.agent import storage_view
from castor_runtime.agent.storage_view import StorageView
from castor_runtime.launcher import storage_check
from castor_runtime.launcher.storage_check import check_tiers
from castor_runtime.persistent import address
from castor_runtime.persistent.address import require_usable, tier_at
from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.manifest import Attempt, Receipt, write_receipt
from castor_runtime.persistent.reading import whole_part
from castor_runtime.persistent.storage import (
    complete_iterations,
    files_folder,
    publish_if_complete,
    start_attempt,
)
from castor_runtime.persistent.tier import Tier, TierError
from castor_runtime.state.protocol import DamagedError, PersistentPart

FINGERPRINT = "0f" * 16
PART = 17 << 20
"""Two of them make two parts of an upload."""


def complete(tier: Tier, iteration: int, generation: int = 1, size: int = 1000) -> Attempt:
    attempt = Attempt("job", FINGERPRINT, iteration, generation, 1, run="ab" * 8)
    staging = start_attempt(tier, attempt)
    assert staging is not None
    with tier.writing(f"{staging}/part") as file:
        file.write(bytes([generation]) * size)
    write_receipt(tier, staging, Receipt(attempt, 0, (file.record("part"),)))
    assert publish_if_complete(tier, attempt) is not None
    return attempt


@pytest.fixture(autouse=True)
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what fails tried again once by each of the two that do: their waits grow with tries.

    On a slow machine these take longer than a command waits for a tier that is away.
    """
    monkeypatch.setattr(storage_check, "_LOOK_S", 100.0)
    monkeypatch.setitem(address._S3_TIMES["config_kwargs"]["retries"], "max_attempts", 2)
    monkeypatch.setattr(import_module("s3fs").S3FileSystem, "retries", 2)


@pytest.fixture
def bucket(between, tmp_path: Path) -> Tier:
    return tier_at(url(between, tmp_path.name))


def url(between: FaultyProxy, prefix: str) -> str:
    return f"s3://bucket/{prefix}?endpoint_url={between.endpoint}"


@pytest.mark.parametrize("fault", [(503, "SlowDown"), (500, "InternalError"), "reset"])
def test_what_fails_once_is_tried_again(bucket: Tier, between, fault) -> None:
    seen: Counter[str] = Counter()

    def once(method: str, path: str) -> object:
        if method != "PUT":
            return None
        seen[path] += 1
        return (RESET if fault == "reset" else fault) if seen[path] == 1 else None

    between.faults = once
    complete(bucket, 7, size=2 * PART)
    assert complete_iterations(bucket) == (7,)
    assert len([path for path in seen if "partNumber" in path]) >= 2
    assert all(times >= 2 for times in seen.values())


def test_a_bucket_that_fails_half_way_keeps_nothing_of_it(bucket: Tier, between) -> None:
    complete(bucket, 6)
    between.faults = lambda _, path: (500, "InternalError") if "partNumber=2" in path else None
    with pytest.raises(TierError, match=r"^s3://bucket/.* failed \(.*\): see what its server says"):
        complete(bucket, 7, size=3 * PART)
    between.faults = lambda *_: None
    assert complete_iterations(bucket) == (6,)
    assert any(method == "DELETE" and "uploadId" in path for method, path in between.requests)
    complete(bucket, 8)
    assert complete_iterations(bucket) == (6, 8)


def test_credentials_that_run_out_are_told_of_and_new_ones_read(
    s3: str, between, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = hidden\n"
    tier = tier_at(f"{url(between, 'keys')}&credentials={file}")
    with pytest.raises(TierError, match=r"needs credentials .*: see to AWS_ACCESS_KEY_ID"):
        tier.files("")
    file.write_text(keys.format("old"))
    complete(tier, 1)
    between.faults = lambda *_: (400, "ExpiredToken")
    with pytest.raises(TierError, match="the credentials have expired") as expired:
        complete(tier, 2)
    assert not expired.value.for_good
    between.faults = lambda *_: (403, "SignatureDoesNotMatch")
    with pytest.raises(TierError, match="refuses access") as refused:
        tier.files("")
    assert refused.value.for_good
    assert "hidden" not in str(refused.value)
    between.faults = lambda *_: None
    file.write_text(keys.format("new"))
    complete(tier, 2)
    assert complete_iterations(tier) == (1, 2)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://x", "is no tier, .*: name s3://BUCKET"),
        ("https://host/x", "https://... is no tier, it is no object store .*: name s3://"),
        ("az://box/x", "needs a package that is not installed"),
        ("sftp://host/x", "is no tier, .*, or mount what is there and name the folder"),
        ("s3://", "name a bucket, and a prefix"),
        ("s3://key:secret@bucket/x", "no name, password"),
        ("s3://bucket/x?secret=abc", "no option 'secret': there are endpoint_url, region"),
        ("s3://bucket/x?endpoint_url=", "no option 'endpoint_url'"),
        ("gs://bucket/x?project=p", "no option 'project': it takes none"),
        ("nothing://bucket/x", "is no tier"),
        ("gs://bucket/x", "needs a package that is not installed"),
        ("file://host/x", "write file:///PATH"),
    ],
)
def test_a_url_that_can_be_none_is_refused_in_a_sentence(url: str, told: str) -> None:
    with pytest.raises(OptionError, match=told) as refused:
        check_tiers([url])
    assert "secret@" not in str(refused.value)
    assert "abc" not in str(refused.value)
    assert refused.value.option == "persistence.tiers"


def test_an_s3fs_that_is_too_old_or_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("s3fs"), "__version__", "2025.12.0")
    with pytest.raises(ValueError, match=r"needs s3fs of 2026 or later, here is 2025\.12\.0"):
        require_usable("s3://bucket/x")

    def missing(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(import_module("fsspec.registry"), "get_filesystem_class", missing)
    with pytest.raises(ValueError, match=r"not installed: pip install 'castor-ckpt\[s3\]'"):
        require_usable("s3://bucket/x")


def test_a_missing_bucket_ends_the_command_and_one_that_is_away_does_not(
    s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match="s3://nowhere/x is in no bucket or folder that is there"):
        check_tiers([f"s3://nowhere/x?endpoint_url={s3}"])
    check_tiers([f"s3://bucket/x?endpoint_url={s3}", "s3://b/x?endpoint_url=http://127.0.0.1:9"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("castor: s3://b/x cannot be reached")
    assert line.endswith("training starts without it, and tries it again")


def left_in(tier: Tier) -> tuple[list[str], list[str]]:
    return list(tier.files("")), tier.folders("")


def test_the_tiers_of_a_job_are_written_to_before_it_starts_and_left_as_they_were(
    tier: Tier,
) -> None:
    tier.probe()
    assert left_in(tier) == ([], [])
    complete(tier, 7)
    before = left_in(tier)
    tier.probe()
    assert left_in(tier) == before
    assert complete_iterations(tier) == (7,)


def refused(url: str) -> str:
    with pytest.raises(OptionError) as told:
        check_tiers([url])
    assert told.value.option == "persistence.tiers"
    return str(told.value)


def test_a_bucket_that_can_be_listed_and_not_written_to_is_refused(
    bucket: Tier, between: FaultyProxy, tmp_path: Path
) -> None:
    complete(bucket, 7)
    before = left_in(bucket)
    between.faults = lambda method, _: (403, "AccessDenied") if method == "PUT" else None
    assert "it can be read, not written to" in refused(url(between, tmp_path.name))
    between.faults = lambda method, _: (403, "AccessDenied") if method == "DELETE" else None
    assert "nothing removed: .castor-probe-" in refused(url(between, tmp_path.name))
    between.faults = lambda *_: None
    ((probe,),) = [[name for name in bucket.files("") if name not in before[0]]]
    bucket.delete(probe)
    assert left_in(bucket) == before


def test_a_bucket_that_makes_a_file_where_there_is_one_is_refused(
    bucket: Tier, between: FaultyProxy, tmp_path: Path
) -> None:
    """As servers do that take no notice of `If-None-Match`."""
    seen: Counter[str] = Counter()

    def ignores(method: str, path: str) -> object:
        seen[path] += method == "PUT"
        return (200, b"") if method == "PUT" and seen[path] == 2 else None

    between.faults = ignores
    assert "makes a file also where there is one" in refused(url(between, tmp_path.name))
    assert left_in(bucket) == ([], [])


def test_a_bucket_that_is_only_overloaded_is_told_of(
    bucket: Tier, between: FaultyProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    between.faults = lambda method, _: (503, "SlowDown") if method == "PUT" else None
    check_tiers([url(between, tmp_path.name)])
    between.faults = lambda *_: None
    assert "training starts without it, and tries it again" in capsys.readouterr().err
    assert left_in(bucket) == ([], [])


def test_a_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, needs: Callable[..., None]
) -> None:
    check_tiers([str(tmp_path / "not" / "yet")])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert f"can be no folder: {tmp_path}/file is a file" in refused(f"{tmp_path}/file/tier")
    needs("mount", "umount", root=True)
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "castor-test", str(tmp_path)]
    subprocess.run(mount, check=True, timeout=30)
    try:
        assert f"cannot be written to: {tmp_path} lets" in refused(f"{tmp_path}/tier")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True, timeout=30)


# ---- several tiers ---------------------------------------------------------------------------


def part_of(*tiers: str, iteration: int = 7, agree=None) -> PersistentPart:
    rest = () if agree is None else (None, agree)
    return PersistentPart(tiers, iteration, 0, "job", FINGERPRINT, *rest)


def content(part: PersistentPart) -> bytes:
    with whole_part(part) as folder:
        return (folder / "part").read_bytes()[:1]


def test_the_nearest_tier_that_has_it_whole_is_read(tmp_path: Path) -> None:
    near, far = str(tmp_path / "near"), str(tmp_path / "far")
    for url in (near, far):
        complete(LocalTier(Path(url)), 7)
    assert content(part_of(near, far)) == b"\1"
    (tmp_path / "near" / "global_step7" / "part").write_bytes(b"\2" * 1000)
    assert content(part_of(near, far)) == b"\1"
    (tmp_path / "far" / "global_step7" / "part").unlink()
    with pytest.raises(DamagedError, match=r"near/global_step7: not as .*far/global_step7: not as"):
        content(part_of(near, far))
    away = "s3://bucket/x?endpoint_url=http://127.0.0.1:9"
    with pytest.raises(OSError, match="cannot be reached"):  # it may be whole there
        content(part_of(near, away))


def test_ranks_read_the_same_writing_of_an_iteration(tmp_path: Path) -> None:
    near, far = str(tmp_path / "near"), str(tmp_path / "far")
    complete(LocalTier(Path(near)), 7, generation=1)
    complete(LocalTier(Path(far)), 7, generation=2)
    asked: list[list[bytes]] = []

    def agree(names) -> bytes:
        asked.append(list(names))
        return asked[0][1]  # what another rank can read as well

    assert content(part_of(near, far, agree=agree)) == b"\2"
    with pytest.raises(DamagedError, match="no writing of it that is the same"):
        content(part_of(near, far, agree=lambda _: None))


def test_a_tier_that_is_away_holds_up_the_others_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_view, "GRACE_S", 0.2)
    answers = threading.Event()
    away = LocalTier(tmp_path / "away")
    listed = away.folders
    away.folders = lambda folder: answers.wait(120) and listed(folder)  # type: ignore[method-assign]
    here = LocalTier(tmp_path / "here")
    answers.set()
    complete(away, 9)
    answers.clear()
    tiers = {"away": away, "here": here}
    monkeypatch.setattr(storage_view, "tier_at", tiers.__getitem__)
    spec = JobSpec(
        "job", 1, 1, "group", ((0,),), "t.py", persistence=PersistenceOptions(tiers=tuple(tiers))
    )

    async def ask() -> tuple[tuple[int, ...], tuple[int, ...]]:
        view = StorageView(spec)
        # The one that answers has none, which is no word on the other's.
        asking = asyncio.create_task(view.complete(""))
        await asyncio.sleep(0.5)
        assert not asking.done()
        answers.set()
        both = await asyncio.wait_for(asking, 60)
        answers.clear()
        complete(here, 8)
        one = await asyncio.wait_for(view.complete(""), 60)
        answers.set()
        return both, one

    assert asyncio.run(ask()) == ((9,), (8,))


def test_damage_is_set_aside_in_the_tier_that_has_it(tmp_path: Path) -> None:
    near, far = LocalTier(tmp_path / "near"), LocalTier(tmp_path / "far")
    for tier in (near, far):
        complete(tier, 7)
    attempt = Attempt("job", FINGERPRINT, 7, 1, 1, run="ab" * 8)
    near.write(f"{files_folder(near, attempt)}/part", b"\1" * 999 + b"\2")
    persistence = PersistenceOptions(tiers=(near.url, far.url))
    spec = JobSpec("job", 1, 1, "group", ((0,),), "t.py", persistence=persistence)
    asyncio.run(StorageView(spec).recheck(0, 7, FINGERPRINT))
    assert complete_iterations(near) == ()
    assert complete_iterations(far) == (7,)

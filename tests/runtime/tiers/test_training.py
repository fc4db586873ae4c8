"""Training with a bucket that fails, is slow, and is loaded from in the end: it notices nothing."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from castor_lab.one_process import Cluster, Outcome, TrainerThread
from castor_lab.one_process.failures import lose
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import PersistenceOptions, TrafficOptions
from castor_policy.membership import WatchLimits
from castor_records.events.event import of_kind
from castor_records.events.failures import Planned
from castor_records.events.storing import Persisted, PersistFailed
from castor_runtime.arena import SHARED_MEMORY
from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.storage import complete_iterations

ITERATIONS = 60


@pytest.fixture
def job() -> Iterator[str]:
    job = f"h{secrets.token_hex(4)}"
    yield job
    for path in SHARED_MEMORY.glob(f"castor-{job}[.-]*"):
        path.unlink()


def cluster_of(job: str, folder: Path, *tiers: str) -> Cluster:
    folder.mkdir()
    spec = JobSpec(
        job=job,
        machines=4,
        ranks_per_machine=1,
        placement="group",
        replicas=((0, 1), (1, 0), (2, 3), (3, 2)),
        script="train.py",
        started_ns=time.time_ns(),
        traffic=TrafficOptions(chunk_bytes=4096),
        limits=WatchLimits(lease_s=8.0),
        persistence=PersistenceOptions(tiers=tiers, every_s=1.0),
    )
    return Cluster(spec, folder, iterations=ITERATIONS)


def written(outcome: Outcome, kind: type[Persisted | PersistFailed], where: str) -> list[int]:
    found = of_kind(outcome.events, kind)
    return [entry.event.iteration for entry in found if entry.event.where == where]


def test_a_bucket_that_fails_holds_up_nobody_and_is_loaded_from_once_it_works(
    between, job: str, tmp_path: Path
) -> None:
    for costs_seconds in ("castor_runtime.persistent.machine_share", "s3fs"):
        import_module(costs_seconds)  # not while it trains
    undisturbed = cluster_of(f"{job}-0", tmp_path / "undisturbed").run()
    folder, bucket = str(tmp_path / "kept"), between.url(job)
    cluster = cluster_of(job, tmp_path / "agents", bucket, folder)
    refused = threading.Event()

    def refuse_writing(method: str, _: str) -> tuple[int, str] | None:
        if method != "PUT":
            return None
        refused.set()
        return (403, "InvalidAccessKeyId")

    between.faults = refuse_writing

    def lose_all_but_the_bucket(trainer: TrainerThread) -> None:
        if lost.is_set():
            if trainer.session._last > ITERATIONS - 5:
                between.faults = refuse_writing  # what is under way then is to end with the job
        elif refused.wait(0.1):
            between.faults = lambda *_: None
            time.sleep(0.3)
            in_bucket.extend(complete_iterations(tier_at(bucket)))
            if in_bucket and Path(folder).exists():
                lost.set()
                shutil.rmtree(folder)
                lose(cluster, "node-2", "node-3", memory=True)(trainer)

    lost = threading.Event()
    in_bucket: list[int] = []
    for step in range(1, ITERATIONS):
        cluster.at(0, step, lose_all_but_the_bucket)
    outcome = cluster.run()
    assert lost.is_set()
    assert outcome.state == undisturbed.state
    shown = bucket.partition("?")[0]
    failed = written(outcome, PersistFailed, shown)
    assert failed
    assert set(failed) & set(written(outcome, Persisted, folder)), "one does not hold up the other"
    causes = {entry.event.cause for entry in of_kind(outcome.events, PersistFailed)}
    assert any(
        cause.startswith(f"{shown} refuses access (InvalidAccessKeyId was injected): see to")
        for cause in causes
    )
    assert not any("something" in cause for cause in causes), "no secret is told"
    plans = [entry.event for entry in of_kind(outcome.events, Planned)]
    assert plans[-1].tier == "storage"
    assert plans[-1].iteration >= max(in_bucket)

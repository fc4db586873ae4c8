"""A job in one process, with a folder that is fine and a bucket that stops answering half way."""

from __future__ import annotations

import threading
import time
from importlib import import_module
from pathlib import Path

import pytest

from castor_lab.one_process import Cluster, small_job
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import plan_key
from castor_policy.agents.wish import WishKind
from castor_policy.job_options import PersistenceOptions
from castor_records.events.event import of_kind
from castor_records.events.storing import Persisted, PersistLeftOut
from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.storage import complete_iterations

# What is killed here keeps its files open: they are threads, and not processes of their own.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

ITERATIONS = 1000
ITERATION_S = 0.02


def test_a_bucket_that_stands_is_left_out_and_a_stop_at_a_checkpoint_needs_one_tier(
    between, s3: str, tmp_path: Path
) -> None:
    import_module("castor_runtime.persistent.deepspeed_format")  # seconds; not while it trains
    import_module("s3fs")
    released, sent = threading.Event(), threading.Lock()

    def stand(method: str, _: str) -> None:
        """Take what is sent first, which says that a checkpoint is under way; then nothing."""
        if method == "PUT" and not sent.acquire(blocking=False):
            released.wait(60)

    between.faults = stand
    fine = tmp_path / "fine"
    slow = f"s3://bucket/{tmp_path.name}?endpoint_url={between.endpoint}"
    tiers = PersistenceOptions(tiers=(str(fine), slow), every_s=2.0)
    spec = small_job(machines=2, replicas=((0, 1), (1, 0)), persistence=tiers)
    cluster = Cluster(spec, tmp_path / "run", iterations=ITERATIONS)
    for step in range(ITERATIONS):
        cluster.at(1, step, lambda trainer: trainer.killed.wait(ITERATION_S) and None)
    cluster.when(PersistLeftOut, 1, lambda: cluster.ask(WishKind.CHECKPOINT))
    try:
        outcome = cluster.run()
    finally:
        released.set()
        cluster.remove_memory()
    assert set(outcome.codes.values()) == {93}
    (found,), _ = cluster.model.get_prefix(plan_key(spec.job), time.monotonic())
    plan = Plan.from_json(found.value)
    assert (plan.phase, plan.reason) == (Phase.STOPPED, "stopped by its user at a checkpoint")
    counting = complete_iterations(LocalTier(fine))
    assert counting[-1] == plan.reached < ITERATIONS
    assert complete_iterations(tier_at(f"s3://bucket/{tmp_path.name}?endpoint_url={s3}")) == ()
    assert {one.event.where for one in of_kind(outcome.events, Persisted)} == {str(fine)}
    left_out = [one.event for one in of_kind(outcome.events, PersistLeftOut)]
    assert slow.partition("?")[0] in {one.where for one in left_out}

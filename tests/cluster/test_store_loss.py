"""A job whose store loses all of its data goes on, and recovers from what fails later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from castor_records.events.storing import StoreTrouble
from castor_runtime.stores import EmbeddedEtcd

pytestmark = pytest.mark.long


def test_a_store_that_is_wiped_costs_nothing_and_a_later_failure_is_recovered_from(
    start: Any, tmp_path: Path
) -> None:
    etcd = EmbeddedEtcd(tmp_path / "etcd")
    etcd.start()
    try:
        run = start("--nodes", "2", "--store", etcd.url, waits_at=10)
        run.wait_until(lambda: run.iteration() >= 5, "training")
        etcd.kill()
        shutil.rmtree(tmp_path / "etcd" / "data")
        etcd.start()

        def noticed() -> bool:
            troubles = [e for e in run.events() if isinstance(e.event, StoreTrouble)]
            return len({e.event.agent for e in troubles if e.event.about == "data"}) == 2

        run.wait_until(noticed, "every agent's notice")
        record = json.loads((run.folder / "agents" / "node-1" / "agent.json").read_text())
        assert record["generation"] == 1, "nothing was stopped"
        run.inject("rank:1@now")
        (tmp_path / "go").touch()
        trial = run.wait(120)
    finally:
        etcd.close()
    assert trial.code == 0, trial.output
    assert trial.result["iterations"] == 30
    assert [one["generation"] for one in trial.recoveries] == [2]
    assert "lost data" in trial.output
    assert trial.processes_left == trial.memory_left == ()

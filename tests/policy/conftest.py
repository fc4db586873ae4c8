"""Whatever a test has the agents' machines do, they do what their tables allow."""

from __future__ import annotations

import pytest

from castor_policy.agents.effects import RootEffect, WorkerEffect
from castor_policy.agents.events import RootEvent, WorkerEvent
from castor_policy.agents.life import check_root, check_worker
from castor_policy.agents.root import Root
from castor_policy.agents.worker import Worker


@pytest.fixture(autouse=True)
def _validated(monkeypatch: pytest.MonkeyPatch) -> None:
    obey, decide = Worker.handle, Root.handle

    def obeys(worker: Worker, event: WorkerEvent, now_s: float) -> list[WorkerEffect]:
        before = worker.standing
        effects = obey(worker, event, now_s)
        check_worker(worker, before, event)
        return effects

    def decides(
        root: Root, event: RootEvent, now_s: float, at_s: float | None = None
    ) -> list[RootEffect]:
        effects = decide(root, event, now_s, at_s)
        check_root(root, event, effects)
        return effects

    monkeypatch.setattr(Worker, "handle", obeys)
    monkeypatch.setattr(Root, "handle", decides)

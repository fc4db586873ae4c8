"""`castor stop`, `resume` and `drain` against a store: what they ask for, say, and refuse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from castor_configs.errors import InputError
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import agents_prefix, plan_key, spec_key
from castor_policy.agents.wish import Wish, WishKind
from castor_policy.agents.wishes import STOPPED_AT
from castor_policy.job_options import PersistenceOptions
from castor_policy.placement import place
from castor_policy.store import Put, Store, Txn
from castor_runtime.launcher import asking
from castor_runtime.launcher.job_view import JobView, read_view
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

NAMES = ("a", "b")
STOP, DRAIN = Wish(WishKind.STOP).key("j"), Wish(WishKind.DRAIN, "a").key("j")
PLAN = Plan(3, 7, Phase.LOAD, NAMES, ("a.1", "b.1"), reached=8)


class Asked:
    """A store with one job, and what commands said of it."""

    def __init__(
        self, plan: Plan = PLAN, *, tiers: tuple[str, ...] = (), alive: bool = True
    ) -> None:
        rows = place("mixed", 2, 2).replicas
        self.spec = JobSpec(
            "j", 2, 1, "group", rows, "t.py", persistence=PersistenceOptions(tiers=tiers)
        )
        self.model = StoreModel()
        self.said: list[str] = []
        self.put(spec_key("j"), self.spec.to_json())
        self.put(plan_key("j"), plan.to_json())
        for name in NAMES if alive else ():
            report = AgentReport(name, f"{name}.1", False, f"{name}:1")
            self.put(agents_prefix("j") + name, report.to_json())

    def put(self, key: str, value: str) -> None:
        self.model.transact(Txn((), (Put(key, value),)), time.monotonic())

    def do(self, ask: Callable[[Store], Awaitable[int | None]]) -> int | None:
        async def asked() -> int | None:
            store = ModelStore(self.model, time.monotonic)
            try:
                return await ask(store)
            finally:
                await store.close()

        return asyncio.run(asked())

    def view(self) -> JobView:
        found: list[JobView] = []

        async def read(store: Store) -> None:
            found.append(await read_view(store, "j"))

        self.do(read)
        return found[0]

    def stop(self, *, checkpoint: bool = False, waits: bool = False) -> int | None:
        return self.do(
            lambda s: asking.stop(s, "j", checkpoint=checkpoint, waits=waits, say=self.said.append)
        )

    def resume(self) -> None:
        self.do(lambda s: asking.resume(s, "j", lambda spec: spec, self.said.append))


def test_a_stop_stands_in_the_store_and_resume_takes_it_back() -> None:
    made = Asked(tiers=("kept",))
    assert made.stop(checkpoint=True) == 0
    assert made.view().wishes[STOP].kind == WishKind.CHECKPOINT
    made.resume()
    assert made.view().wishes == {}
    with pytest.raises(InputError, match="has not ended: there is nothing to resume"):
        made.resume()


def test_a_stop_is_followed_to_its_end() -> None:
    made = Asked()
    stopped = replace(PLAN, phase=Phase.STOPPED, reason="stopped by its user")

    async def both(store: Store) -> int:
        ending = asyncio.create_task(
            asking.stop(store, "j", checkpoint=False, waits=True, say=made.said.append)
        )
        await asyncio.sleep(0.05)
        made.put(plan_key("j"), stopped.to_json())
        return await ending

    assert made.do(both) == 0
    assert made.said[-2] == "job j is stopped by its user, iteration 8"
    assert "from the start" in made.said[-1]


def test_what_cannot_be_asked_for_is_refused() -> None:
    made = Asked()
    with pytest.raises(InputError, match="no persistent tier"):
        made.stop(checkpoint=True)
    with pytest.raises(InputError, match="no living agent 'c': a, b are"):
        made.do(lambda s: asking.drain(s, "j", "c", waits=False, say=made.said.append))
    with pytest.raises(InputError, match="nobody has asked to drain"):
        made.do(lambda s: asking.take_back_drain(s, "j", "a", made.said.append))
    with pytest.raises(InputError, match="has no job 'k'"):
        made.do(lambda s: asking.stop(s, "k", checkpoint=False, waits=False, say=made.said.append))
    assert made.view().wishes == {}


def test_a_job_without_agents_stops_when_one_comes() -> None:
    made = Asked(alive=False)
    assert made.stop(waits=True) == 0
    assert made.said == ["no agent of job j is alive: it stops as soon as one comes"]
    assert STOP in made.view().wishes


def test_a_drain_names_the_life_that_is_meant() -> None:
    made = Asked()
    made.do(lambda s: asking.drain(s, "j", "a", waits=False, say=made.said.append))
    assert made.view().wishes[DRAIN].life == ("a", "a.1")


@pytest.mark.parametrize(
    ("phase", "code", "said"),
    [(Phase.FINISHED, 0, "has finished"), (Phase.FAILED, 1, "was given up at iteration 8: why")],
)
def test_who_stops_what_has_ended_is_told_how(phase: Phase, code: int, said: str) -> None:
    made = Asked(replace(PLAN, phase=phase, reason="why"), alive=False)
    assert made.stop() == code
    assert said in made.said[0]
    assert made.view().wishes == {}


def test_a_stopped_job_is_made_runnable_again_and_a_finished_one_is_not() -> None:
    stopped = replace(PLAN, phase=Phase.STOPPED, reason=STOPPED_AT, trained=True)
    made = Asked(stopped, tiers=("kept",), alive=False)
    made.put(STOP, Wish(WishKind.STOP).to_json())
    made.resume()
    view = made.view()
    assert view.plan is not None
    assert (view.plan.generation, view.plan.phase, view.wishes) == (4, Phase.GATHER, {})
    assert "from iteration 8 in the persistent tier" in made.said[0]
    finished = Asked(replace(PLAN, phase=Phase.FINISHED), alive=False)
    with pytest.raises(InputError, match="has finished"):
        finished.resume()


def test_limits_are_changed_on_the_way() -> None:
    spec = asking.changed(Asked().spec, max_attempts=9, limit_bytes=1 << 30)
    assert (spec.recovery.max_attempts, spec.memory.limit_bytes) == (9, 1 << 30)
    assert asking.changed(spec) == spec

"""The placement of a job is made from what its agents say that their machines fail with."""

from __future__ import annotations

import asyncio
from pathlib import Path

from castor_policy.agents.domain_call import Answer, called_domains
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.seating import copies_together
from castor_policy.agents.store_keys import spec_key
from castor_policy.placement import place
from castor_policy.store import Put, Txn
from castor_runtime.agent.main import read_spec
from castor_runtime.agent.options import AgentOptions
from castor_runtime.launcher.domain_call import placed_by_agents
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

SPEC = JobSpec("j", 4, 1, "domains", place("mixed", 4, 2).replicas, "t.py")


def store() -> ModelStore:
    return ModelStore(StoreModel(), lambda: 0.0)


def test_agents_that_wait_for_a_job_say_their_domains_and_get_its_placement() -> None:
    async def scenario() -> None:
        shared, said = store(), list[str]()
        placing = asyncio.create_task(placed_by_agents(shared, SPEC, lambda: False, said.append))
        racks = {"a": "one", "b": "one", "c": "two", "d": "two", "s": "one"}
        waiting = [
            asyncio.create_task(
                read_spec(
                    shared,
                    AgentOptions(
                        name, "j", "", Path(), standby=name == "s", domain=rack, wait_s=0.1
                    ),
                )
            )
            for name, rack in racks.items()
        ]
        placed = await asyncio.wait_for(placing, 10)
        await shared.transact(Txn((), (Put(spec_key("j"), placed.to_json()),)))
        assert {spec.replicas for spec in await asyncio.gather(*waiting)} == {placed.replicas}
        assert copies_together(placed, dict(enumerate(("one", "one", "two", "two")))) == {}
        assert copies_together(SPEC, dict(enumerate(("one", "one", "two", "two")))) != {}
        assert placed.placement == "domains"
        assert said == ["placed over 2 failure domains, as the agents say"]

    asyncio.run(scenario())


def test_who_says_none_counts_as_alone_and_standbys_come_last() -> None:
    answers = [Answer("a", False, "r"), Answer("b", False, ""), Answer("c", False, "")]
    assert called_domains(answers, 3, standbys_too=False) == (0, 1, 2)
    assert called_domains(answers, 4, standbys_too=False) is None
    late = [*answers, Answer("0", True, "r")]
    assert called_domains(late, 4, standbys_too=False) is None
    assert called_domains(late, 4, standbys_too=True) == (0, 1, 2, 0)


def test_an_interrupted_run_and_a_name_that_is_taken_are_not_waited_for() -> None:
    async def scenario() -> None:
        shared = store()
        assert await placed_by_agents(shared, SPEC, lambda: True, print) is SPEC
        await shared.transact(Txn((), (Put(spec_key("j"), SPEC.to_json()),)))
        assert await placed_by_agents(shared, SPEC, lambda: False, print) is SPEC

    asyncio.run(scenario())

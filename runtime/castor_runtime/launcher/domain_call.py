"""Asks the agents of a job to be what their machines fail with, and places its shards by that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from castor_policy.agents.beginning import BEGIN_WITHOUT_S
from castor_policy.agents.domain_call import Answer, answers_prefix, call_key, called_domains
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_keys import spec_key
from castor_policy.placement import place
from castor_policy.store import Put, Store, StoreRefusedError, StoreUnavailableError, Txn

_LOOK_S: Final = 0.2


async def placed_by_agents(
    store: Store, spec: JobSpec, over: Callable[[], bool], say: Callable[[str], None]
) -> JobSpec:
    """Return the job with the placement that the domains of its first agents ask for.

    The call stays in the store, where nobody looks at it once the job is there.

    Args:
        store: where the job will be.
        spec: the job; its placement is not settled.
        over: whether the user has ended it; then the job is returned as it is.
        say: told in a line what happens.
    """
    began_s, domains = time.monotonic(), None
    answers: list[Answer] = []
    while domains is None and not over():
        try:
            there, _ = await store.get_prefix(spec_key(spec.job))
            if any(one.key == spec_key(spec.job) for one in there):
                return spec  # its name is taken: whoever puts it says so
            await store.transact(Txn((), (Put(call_key(spec.job), str(spec.machines)),)))
            found, _ = await store.get_prefix(answers_prefix(spec.job))
        except StoreRefusedError:
            return spec  # as above
        except StoreUnavailableError:
            await asyncio.sleep(_LOOK_S)
            continue
        late = time.monotonic() - began_s >= BEGIN_WITHOUT_S
        answers = [Answer.from_json(one.value) for one in found]
        domains = called_domains(answers, spec.machines, standbys_too=late)
        if domains is None:
            await asyncio.sleep(_LOOK_S)
    if domains is None:
        return spec
    silent = sorted(one.agent for one in answers if not one.domain)
    if silent:
        say(f"no failure domain is known of {', '.join(silent)}: castor agent --domain says it")
    say(f"placed over {len(set(domains))} failure domains, as the agents say")
    replicas = len(spec.replicas[0])
    rows = place("domains", spec.machines, replicas, domains=domains).replicas
    return replace(spec, replicas=rows)


def agents_wanted(spec: JobSpec, store_url: str, secret: Path) -> str:
    """Return how many agents a job needs and how each is started, for people."""
    command = f"castor agent --store {store_url} --job {spec.job} --secret {secret}"
    return f"{spec.machines} agents: {command}"

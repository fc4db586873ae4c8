"""Checks that memory is given back once nobody can need it, and no sooner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from castor_policy.agents.plan import Phase, Plan
from castor_sim.explore.checkpoint_model import newest_generation
from castor_sim.explore.invariants import Violation
from castor_sim.explore.plan_grounds import name_of
from castor_sim.explore.roles import Agent


def check_needless(agent: Agent, loads: Mapping[int, Plan]) -> None:
    """Check that nobody can need what this agent gives back now (17).

    Until a later generation is loaded without its machine, what is there may be the last.

    Args:
        agent: it.
        loads: by generation, what was loaded.

    Raises:
        Violation: somebody may yet.
    """
    written = newest_generation(agent.host.memory)
    later = [plan for generation, plan in loads.items() if generation > written]
    if written and all(agent.name in plan.agents for plan in later):
        what = f"{agent.incarnation} gives back what generation {written} wrote"
        raise Violation(17, f"{what}, and none was loaded without it since")


def check_given_back(agents: Sequence[Agent], plan: Plan) -> None:
    """Check that who saw a generation load without it holds no memory at its end (20).

    Args:
        agents: those that live.
        plan: of the generation that has finished.

    Raises:
        Violation: one of them does.
    """
    for agent in agents:
        seen = agent.worker.plan
        if seen is None or (seen.generation, seen.phase) != (plan.generation, Phase.LOAD):
            continue  # it has not heard of it yet
        is_out = agent.worker.machine is None and agent.name not in plan.agents
        if is_out and agent.has_obeyed and agent.host.memory:
            what = f"{agent.incarnation} holds ranks {sorted(agent.host.memory)}"
            raise Violation(20, f"{what}, and {name_of(plan)} was loaded without it")

"""What training on while replicas are missing gives up of invariant 4: docs/invariants.md."""

from __future__ import annotations

from castor_policy.agents.plan import Plan
from castor_policy.job_options import DEGRADED
from castor_sim.explore.roles import Scene, Trainer


def gives_up_own(scene: Scene, plan: Plan, trainer: Trainer) -> bool:
    """Whether an only own copy that is written over has to count as lost.

    The newer iteration is whole at the peers, but one of them lacks the one before, which it is
    still fetching. If another machine is lost before all ranks have turned, some part may be had
    of the newer iteration alone and some of the older one.
    """
    kept = trainer.agreed
    if scene.spec.recovery.redundancy != DEGRADED or kept is None:
        return False
    for place in scene.spec.replicas[trainer.machine][1:]:
        agent = scene.agents.get(plan.agents[place])
        replica = agent.host.memory.get(trainer.rank) if agent is not None else None
        if replica is None or replica.find(kept) is None:
            return True
    return False

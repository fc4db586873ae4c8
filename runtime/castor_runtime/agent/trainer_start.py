"""What a trainer is told when it starts: its settings, and torch's own variables."""

from __future__ import annotations

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_runtime.agent import rendezvous
from castor_runtime.agent.options import AgentOptions
from castor_runtime.agent.warm_spares import GENERATION as SPARES
from castor_runtime.trainer import meeting
from castor_runtime.trainer.agent_link import ENVIRONMENT, TrainerSettings
from castor_runtime.trainer.nccl_order import launch_order


class TrainerStart:
    """Says what the trainers of one machine are told.

    Args:
        spec: the job.
        options: of the agent.
        socket: at which it listens for them.
        control: name of their control segment.
    """

    def __init__(self, spec: JobSpec, options: AgentOptions, socket: str, control: str) -> None:
        self._spec = spec
        self._folder = options.folder
        self._socket = socket
        self._control = control
        # Once: it may ask a name server, and a recovery must not wait for that.
        self._interfaces = rendezvous.interfaces(options.listen)

    def settings(
        self, plan: Plan, machine: int, local: int, rank: int, *, is_spare: bool = False
    ) -> TrainerSettings:
        """Return a trainer's settings in the plan's generation, or those of a spare for it."""
        spec = self._spec
        return TrainerSettings(
            job=spec.job,
            run=spec.run,
            rank=rank,
            machine=machine,
            local_rank=local,
            generation=SPARES if is_spare else plan.generation,
            ranks_per_machine=spec.ranks_per_machine,
            replicas=spec.replicas,
            socket=self._socket,
            control=self._control,
            started_ns=spec.started_ns,
            folder=str(self._folder.resolve()),
            in_place=plan.in_place or is_spare,
            is_spare=is_spare,
            **spec.groups(),
        )

    def environment(self, plan: Plan, settings: TrainerSettings) -> dict[str, str]:
        """Return the variables of a trainer that is started."""
        return {
            "RANK": str(settings.rank),
            "WORLD_SIZE": str(settings.world_size),
            "LOCAL_RANK": str(settings.local_rank),
            "LOCAL_WORLD_SIZE": str(settings.ranks_per_machine),
            "NODE_RANK": str(settings.machine),
            **meeting.environment(plan.rendezvous),
            **self._interfaces,
            "PYTHONUNBUFFERED": "1",
            **launch_order(self._spec.traffic.send),
            ENVIRONMENT: settings.to_json(),
        }

"""What an earlier run of the job's name has left on the machines: whole replicas, newest last."""

from __future__ import annotations

from collections.abc import Sequence

from castor_policy import checkpoint_memory
from castor_policy.agents.job_spec import JobSpec
from castor_sim.explore.checkpoint_model import Replica, part_of
from castor_sim.explore.roles import Host, Segment
from castor_sim.explore.truth import Truth

EARLIER_RUN = 2
EARLIER_ID = "00000000000ea511"


def leave(spec: JobSpec, hosts: Sequence[Host], newest: int) -> None:
    """Put an earlier run's replicas on machines, as if its agents had been killed.

    Args:
        spec: the job, then as now.
        hosts: the machines in the order of their places; more than there are places hold again
            what the first ones do.
        newest: the iteration that was complete everywhere, with the one before it; 1 or more.
    """
    truth = Truth(EARLIER_RUN, spec.machines * spec.ranks_per_machine)
    for iteration in range(1, newest + 1):
        truth.trained(iteration, 1)
    for number, host in enumerate(hosts):
        for rank in spec.ranks_held_by(number % spec.machines):
            replica = Replica(spec.buffers_of(number % spec.machines, rank))
            for iteration in (newest - 1, newest):
                index = replica.begin(iteration, 1, iteration - len(replica.headers) + 1)
                part = part_of(truth.state_on(truth.line(iteration), rank))
                for chunk in part:
                    replica.write(index, chunk)
                replica.commit(index, part)
            host.left.append(Segment(EARLIER_ID, rank, replica))


def take_up(spec: JobSpec, host: Host) -> None:
    """Find what a machine's memory holds of this run, as an agent does when it comes up."""
    for segment in host.left:
        if checkpoint_memory.is_of_run(segment.run, spec.run):
            host.memory.setdefault(segment.rank, segment.replica)

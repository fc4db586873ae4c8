"""A checkpoint strategy of one's own, in one file.

Run it from the folder above:

    castor simulate examples/own_strategy.toml

A strategy is a class with options and one method: from a job to the figures that every engine
runs. Nothing in Castor has to change for it.
"""

from __future__ import annotations

from castor_configs.quantities import Nanoseconds
from castor_policy.frequency import nearest_period
from castor_sim.job import Job
from castor_sim.strategies import Gemini, Strategy
from castor_sim.strategy_costs import StrategyCosts


class LocalFirst(Strategy):
    """One copy in the machine's own CPU memory each iteration, and storage for the rest.

    No network traffic at all: a software failure costs an iteration, a lost machine the time
    since the last persistent checkpoint.
    """

    persist_every: Nanoseconds = 30 * 60 * 10**9
    """Time between persistent checkpoints."""

    def costs(self, job: Job) -> StrategyCosts:
        """Take Gemini's figures and drop what concerns replicas on other machines."""
        gemini = Gemini(serialise="0s").costs(job)
        return gemini._replace(
            memory_stall_ns=0,
            memory_transfer_ns=min(job.gpu_copy_ns(), job.iteration_ns),
            storage_every=nearest_period(self.persist_every, job.storage_ns(), job.iteration_ns),
            replicate_ns=0,
        )

"""A whole job in one process: real agents and trainers, over a store and groups in memory.

The agents are `castor_runtime.agent.driver.Agent`, tasks of one event loop; their checkpoint
servers are real ones on loopback, and their memory is real shared memory. The trainers are threads
that run `castor_runtime.trainer.session.TrainerSession` on real links. What is in memory is the
store (`castor_sim.model_store.ModelStore`) and what the trainers' process groups travel on. So a
failure can be put at a rank's step, and a run takes a second instead of ten.
"""

from castor_lab.one_process.cluster import Cluster, Outcome
from castor_lab.one_process.jobs import PAIRS, small_job
from castor_lab.one_process.thread_trainer import TrainerThread

__all__ = ["PAIRS", "Cluster", "Outcome", "TrainerThread", "small_job"]

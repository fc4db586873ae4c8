"""What the same run had cost with checkpoints to storage: the simulator's word.

The run's own failures strike at the same moments of its clock. Each takes as long as it took, from
the failure until training went on, but for the retrieval: in its place the whole state is read
from storage. What is lost is what storage had not got. Where the run wrote persistent checkpoints,
storage is as fast as it was then; else a rate is assumed, and said. The engine is the cluster
simulator's.

For a check of the method the same is done with checkpoints in memory, as the run had them, and set
beside what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from castor_analysis.report.story import Story
from castor_records.phases import Phase
from castor_sim.job import Job, transfer_ns
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.strategies import Daly, HighFreq, Strategy, Strawman
from castor_sim.strategy_costs import StrategyCosts, check_costs
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations, Tally

NS_PER_S: Final = 1_000_000_000
STORAGE_BPS: Final = 20_000_000_000
"""What all machines together get from storage where nobody says: FSx of the paper's cluster."""
TORCH_SAVE_BPS: Final = 7_430_000_000
"""torch.save on one machine, as an experiment has it where it does not say."""
MEASURED: Final = "as this run wrote its persistent checkpoints"
GIVEN: Final = "as it was given"
ASSUMED: Final = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The run with another way to checkpoint.

    Attributes:
        name: of it.
        every: iterations from one checkpoint to the next; 0: there is none.
        wall_s: from the start of training to the same iteration.
        ratio: effective training time ratio.
        redone_s: training that failures threw away.
        stall_s: training waited for checkpoints.
        read_s: one retrieval.
    """

    name: str
    every: int
    wall_s: float
    ratio: float
    redone_s: float
    stall_s: float
    read_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageBill:
    """What storage had cost.

    Attributes:
        alternatives: ways to checkpoint to storage.
        twin: the same engine's word on the run as it was; None where a failure took all copies.
        storage_bps: all machines together.
        rate_from: where that rate is from: `MEASURED`, `GIVEN` or `ASSUMED`.
        checkpoint_bytes: the state of all ranks.
        iteration_s: an iteration without failure and without stalls.
    """

    alternatives: tuple[Alternative, ...]
    twin: Alternative | None
    storage_bps: int
    rate_from: str
    checkpoint_bytes: int
    iteration_s: float


def storage_bill(story: Story, storage_bps: int | None = None) -> StorageBill | str:
    """Reckon it, or say in a sentence why it cannot be.

    Args:
        story: the run.
        storage_bps: what all machines together get from storage; None: as measured, or assumed.
    """
    size = story.checkpoint_bytes
    usual_s = story.iteration_s
    if story.begun_ns is None or usual_s is None or story.reached < 2:
        return "fewer than two iterations ended: nothing says how long one takes"
    if not story.replicas:
        return (
            "these logs do not say how many copies there are; add the log of the agent that made "
            "the job"
        )
    if size is None:
        return "no rank sent its part to another machine: nothing says how large a checkpoint is"
    own_bps = _measured_bps(story, size)
    rate_bps = storage_bps or own_bps or STORAGE_BPS
    iteration_s = max(usual_s - story.stall_s, 1e-9)
    job = _job(story, size, rate_bps, iteration_s)
    chosen: list[tuple[str, Strategy]] = [
        ("every 3 h", Strawman(kind="strawman")),
        ("as often as storage takes it", HighFreq(kind="highfreq")),
    ]
    if story.recoveries:
        chosen.append(("at Daly's interval for this run's failures", Daly(kind="daly")))
    try:
        found = tuple(
            _run(story, name, strategy.costs(job), job, from_storage=True)
            for name, strategy in chosen
        )
        twin = _twin(story, job)
    except ValueError as error:
        return f"the simulator cannot reckon with this run: {error}"
    return StorageBill(
        alternatives=found,
        twin=twin,
        storage_bps=rate_bps,
        rate_from=GIVEN if storage_bps else MEASURED if own_bps else ASSUMED,
        checkpoint_bytes=size,
        iteration_s=iteration_s,
    )


def _measured_bps(story: Story, size: int) -> int | None:
    took_s = [one for one in story.checkpoints.persist_s if one > 0]
    return round(8 * size / sorted(took_s)[len(took_s) // 2]) if took_s else None


def _job(story: Story, size: int, storage_bps: int, iteration_s: float) -> Job:
    wall_s = max(story.account.wall_s, iteration_s)
    network_bps = round(story.checkpoints.bandwidth_bps or 10**10)
    return Job(
        machines=max(1, story.machines),
        gpus_per_machine=max(1, story.ranks // max(1, story.machines)),
        replicas=max(1, story.replicas),
        iteration_ns=round(iteration_s * NS_PER_S),
        network_idle_ns=0,
        checkpoint_bytes=size,
        network_bps=network_bps,
        storage_bps=storage_bps,
        gpu_to_cpu_bps=network_bps,
        torch_save_bps=TORCH_SAVE_BPS,
        warm_up_ns=0,
        detection_ns=0,
        interruptions_per_s=len(story.recoveries) / wall_s,
    )


def _run(
    story: Story, name: str, costs: StrategyCosts, job: Job, *, from_storage: bool
) -> Alternative:
    check_costs(costs, positions=job.machines)
    tally = SimpyEngine(
        costs,
        Operations(positions=job.machines, dedicated=1),
        [_holders(story, machine) for machine in range(job.machines)],
        _strikes(story, from_storage=from_storage),
        target_iterations=story.reached,
    ).run()
    return _alternative(name, costs, tally)


def _alternative(name: str, costs: StrategyCosts, tally: Tally) -> Alternative:
    return Alternative(
        name=name,
        every=costs.storage_every or costs.memory_every,
        wall_s=tally.wall_ns / NS_PER_S,
        ratio=tally.useful_ns / tally.wall_ns,
        redone_s=tally.lost_progress_ns / NS_PER_S,
        stall_s=tally.checkpoint_stall_ns / NS_PER_S,
        read_s=costs.retrieve_storage_ns / NS_PER_S,
    )


def _twin(story: Story, job: Job) -> Alternative | None:
    """Return the run as it was, by the same engine; None where memory did not serve."""
    if any(one.iteration and one.tier not in ("own_memory", "peer") for one in story.recoveries):
        return None
    took_s = sorted(story.checkpoints.seconds)
    whole_ns = round(took_s[len(took_s) // 2] * NS_PER_S) if took_s else 0
    costs = StrategyCosts(
        iteration_ns=job.iteration_ns,
        memory_every=1,
        memory_stall_ns=round(story.stall_s * NS_PER_S),
        memory_transfer_ns=min(whole_ns, job.iteration_ns),
    )
    return _run(story, "in memory, as it was", costs, job, from_storage=False)


def _holders(story: Story, machine: int) -> tuple[int, ...]:
    """Return who holds a shard: that a recovery from memory found one is known, not which."""
    machines = max(1, story.machines)
    return tuple((machine + step) % machines for step in range(max(1, story.replicas)))


def _strikes(story: Story, *, from_storage: bool) -> Sequence[Strikes]:
    rows = []
    begun_ns = story.begun_ns or 0
    for recovery, outage in zip(story.recoveries, story.outages, strict=True):
        stood_ns = outage.end_ns - outage.start_ns
        if from_storage:  # the engine reads from storage in place of what was retrieved
            stood_ns -= round((recovery.seconds.get(Phase.RETRIEVAL) or 0.0) * NS_PER_S)
        # One machine stands for all that failed together: how long they took is in the outage.
        machine = recovery.machines[0] if recovery.machines else 0
        rows.append((max(1, outage.start_ns - begun_ns), machine, 1, max(0, stood_ns)))
    if not rows:
        return []
    times, machines, hardware, restore = zip(*sorted(rows), strict=True)
    return [
        Strikes(
            np.array(times, np.int64),
            np.array(machines, np.int32),
            np.array(hardware, np.int8),
            np.array(restore, np.int64),
        )
    ]


def storage_write_s(bill: StorageBill) -> float:
    """Return how long storage takes to write the whole state once."""
    return transfer_ns(bill.checkpoint_bytes, bill.storage_bps) / NS_PER_S

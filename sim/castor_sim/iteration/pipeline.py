"""Pipeline parallelism: a stage a machine, micro-batches one after the other, idle bubbles.

Each machine holds a stage of consecutive blocks, split evenly over its GPUs (tensor parallelism
inside the machine). Micro-batches pass in the order of "one forward, one backward" (Narayanan et
al., PipeDream-Flush): stage s of P warms up with P - s - 1 forward passes, then alternates. With
equal stages and free messages, each stage computes for M (f + b) and waits for (P - 1)(f + b).

A message takes the card of the machine that sends it. Cards are full duplex, and what arrives is
taken not to wait: stages have their idle spans at different times, and only the sender's count.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from castor_sim.iteration.tasks import Kind, Lane, Task
from castor_sim.iteration.workload import Block, Speeds


def pipeline_tasks(
    blocks: Sequence[Block],
    speeds: Speeds,
    *,
    stages: int,
    gpus: int,
    micro_batches: int,
    message_bytes: int,
) -> tuple[Task, ...]:
    """Return the operations of every stage, machine s being stage s.

    Args:
        blocks: in the order of the forward pass; `forward_flop` is of one micro-batch.
        speeds: what each machine reaches.
        stages: P, at most as many as blocks.
        gpus: G, over which a stage is split.
        micro_batches: M, >= 1.
        message_bytes: activations, or their gradients, between two stages.

    Raises:
        ValueError: there are more stages than blocks, or no micro-batch.
    """
    if not 1 <= stages <= len(blocks):
        raise ValueError(
            f"{stages} stages for {len(blocks)} blocks: give each stage a block, 1 or more"
        )
    if micro_batches < 1:
        raise ValueError(f"micro_batches is {micro_batches}: give 1 or more")
    shares = _shares(blocks, stages)
    forward_ns = [speeds.compute_ns(-(-flop // gpus)) for flop, _ in shares]
    backward_ns = [speeds.compute_ns(-(-flop // gpus)) for _, flop in shares]
    orders = [_one_forward_one_backward(stages, stage, micro_batches) for stage in range(stages)]
    message_ns = speeds.collective.transfer_ns(message_bytes)
    tasks: list[Task] = []
    arrived: dict[tuple[Kind, int, int], int] = {}  # what a stage waits for, by its micro-batch
    last: list[int | None] = [None] * stages
    sent: list[tuple[int, ...]] = [()] * stages
    position = [0] * stages
    while any(position[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            while position[stage] < len(orders[stage]):
                kind, batch = orders[stage][position[stage]]
                needs = _needs(kind, stage, stages)
                if needs and (kind, stage, batch) not in arrived:
                    break
                before = {last[stage], arrived.get((kind, stage, batch))} - {None}
                forward = kind is Kind.FORWARD
                duration_ns = forward_ns[stage] if forward else backward_ns[stage]
                name = f"{kind} stage {stage} micro-batch {batch}"
                after = tuple(sorted(index for index in before if index is not None))
                tasks.append(Task(name, kind, Lane.GPU, duration_ns, after, stage))
                last[stage] = computed = len(tasks) - 1
                position[stage] += 1
                to = stage + 1 if forward else stage - 1
                if 0 <= to < stages:
                    name = f"send {kind} {batch} from stage {stage}"
                    message = Task(
                        name,
                        Kind.SEND,
                        Lane.NETWORK,
                        message_ns,
                        (computed,),
                        stage,
                        message_bytes,
                    )
                    tasks.append(message)
                    arrived[kind, to, batch] = len(tasks) - 1
                    sent[stage] = (len(tasks) - 1,)
    checked = []
    for stage in range(stages):
        ended = last[stage]
        assert ended is not None  # every stage computes
        checked.append(len(tasks))
        tasks.append(
            Task(
                "gradient check",
                Kind.CHECK,
                Lane.GPU,
                speeds.check_ns,
                (ended, *sent[stage]),
                stage,
            )
        )
    for stage, check in enumerate(checked):
        tasks.append(Task("update", Kind.UPDATE, Lane.GPU, speeds.update_ns, (check,), stage))
    return tuple(tasks)


def _shares(blocks: Sequence[Block], stages: int) -> list[tuple[int, int]]:
    """Return each stage's FLOP forward and backward, blocks dealt out as evenly as they go."""
    bounds = [len(blocks) * stage // stages for stage in range(stages + 1)]
    found = []
    for first, end in pairwise(bounds):
        forward = sum(block.forward_flop for block in blocks[first:end])
        again = sum(block.forward_flop for block in blocks[first:end] if block.recomputed)
        found.append((forward, 2 * forward + again))
    return found


def _one_forward_one_backward(
    stages: int, stage: int, micro_batches: int
) -> tuple[tuple[Kind, int], ...]:
    warm_up = min(stages - stage - 1, micro_batches)
    order = [(Kind.FORWARD, batch) for batch in range(warm_up)]
    for batch in range(micro_batches - warm_up):
        order += [(Kind.FORWARD, batch + warm_up), (Kind.BACKWARD, batch)]
    order += [(Kind.BACKWARD, batch) for batch in range(micro_batches - warm_up, micro_batches)]
    return tuple(order)


def _needs(kind: Kind, stage: int, stages: int) -> bool:
    """Say whether a pass waits for a message: not the first stage's forward, nor the last's back.

    The last stage's backward pass follows its own forward pass, which its order already says.
    """
    return stage > 0 if kind is Kind.FORWARD else stage < stages - 1

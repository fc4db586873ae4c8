"""A model on a cluster as the operations of one iteration: ZeRO-3, hybrid and data parallelism.

Every machine does the same at the same time, so that one stands for all. Its GPUs compute in
lock-step; collectives run as rings over all ranks, each network card carrying the ring once in
each direction, and take alpha + bytes/B at the bandwidth that collectives reach.

- zero3: parameters, gradients and optimizer states are sharded over all ranks. Each block's
  parameters are gathered before its forward pass and again before its backward pass, at most
  `prefetch` blocks ahead; its gradients are reduce-scattered after it.
- hybrid: sharded within a machine, copied between machines. Gathers stay on the machine's links;
  gradients are reduce-scattered there, and the shards then all-reduced between machines.
- data: every GPU holds everything; gradients are all-reduced.

Activations are re-computed block by block before the backward pass, which takes twice the forward
pass. When the last gradient is in, its norm is checked and clipped; then the update writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from castor_configs.model import Model
from castor_policy.chunk_schedule import Link
from castor_sim.iteration.tasks import Kind, Lane, Task

GRADIENT_BYTES = 2
"""Half precision, of a parameter as of its gradient."""


@dataclass(frozen=True, slots=True)
class Block:
    """What is gathered, computed and reduced as one.

    Attributes:
        name: "layer 3".
        gather_bytes: parameters, in half precision.
        reduce_bytes: gradients, in half precision.
        forward_flop: of one rank's micro-batch.
        recomputed: whether its activations are computed again before the backward pass.
    """

    name: str
    gather_bytes: int
    reduce_bytes: int
    forward_flop: int
    recomputed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What one machine reaches.

    Attributes:
        flop_per_s: of one GPU, in the layers' arithmetic.
        collective: the network card under a collective of all GPUs.
        link: one GPU's links to the others of its machine.
        check_ns: from the last gradient to the update.
        update_ns: the update.
    """

    flop_per_s: int
    collective: Link
    link: Link
    check_ns: int
    update_ns: int

    def compute_ns(self, flop: int) -> int:
        """Return the time of `flop` operations on one GPU, rounded up."""
        return -(-flop * 10**9 // self.flop_per_s)


def model_blocks(model: Model, *, recompute: bool = True) -> tuple[Block, ...]:
    """Return the embedding, the layers and the output layer of a model.

    A layer's parameters are those of the model less its embedding, over the layers, so that a
    stated size of the model counts. Matrix products cost 2 FLOP a parameter and token, attention
    4 x tokens x sequence x hidden; the output layer multiplies with the embedding, which is
    gathered for it again.
    """
    tokens = model.micro_batch * model.sequence_length
    embedding = (model.vocab + model.sequence_length) * model.hidden
    layer = max(1, (model.parameters - embedding) // model.layers)
    head = model.vocab * model.hidden
    flop = 2 * tokens * layer + 4 * tokens * model.sequence_length * model.hidden
    wide = GRADIENT_BYTES
    layers = (
        Block(f"layer {index}", wide * layer, wide * layer, flop, recompute)
        for index in range(model.layers)
    )
    return (
        Block("embedding", wide * embedding, wide * embedding, 0, recomputed=False),
        *layers,
        Block("output", wide * head, 0, 2 * tokens * head, recomputed=False),
    )


def zero3_tasks(
    blocks: Sequence[Block], speeds: Speeds, *, machines: int, gpus: int, prefetch: int
) -> tuple[Task, ...]:
    """Return the operations of one machine under ZeRO-3.

    Args:
        blocks: in the order of the forward pass.
        speeds: what the machine reaches.
        machines: N, which the collectives span.
        gpus: G, of one machine.
        prefetch: blocks whose parameters may be gathered ahead of the one that computes, >= 0.

    Raises:
        ValueError: `prefetch` is negative.
    """
    if prefetch < 0:
        raise ValueError(f"prefetch is {prefetch}: give 0 blocks or more")
    ring = _Ring(speeds, machines, gpus)
    build = _Builder(speeds, prefetch)
    for block in blocks:
        gathered = build.gather(block, ring.gather(block.gather_bytes))
        build.forward(block, gathered)
    for block in reversed(blocks):
        gathered = build.gather(block, ring.gather(block.gather_bytes))
        build.backward(block, gathered)
        build.reduce(block, (ring.gather(block.reduce_bytes),))
    return build.finished()


def hybrid_tasks(
    blocks: Sequence[Block], speeds: Speeds, *, machines: int, gpus: int, prefetch: int
) -> tuple[Task, ...]:
    """Return the operations of one machine, sharded within it; arguments as `zero3_tasks`.

    Raises:
        ValueError: `prefetch` is negative.
    """
    if prefetch < 0:
        raise ValueError(f"prefetch is {prefetch}: give 0 blocks or more")
    inside = _Ring(speeds, 1, gpus)
    build = _Builder(speeds, prefetch)
    for block in blocks:
        gathered = build.gather(block, inside.gather(block.gather_bytes))
        build.forward(block, gathered)
    for block in reversed(blocks):
        gathered = build.gather(block, inside.gather(block.gather_bytes))
        build.backward(block, gathered)
        across = _across_machines(speeds, block.reduce_bytes, machines)
        build.reduce(block, (inside.gather(block.reduce_bytes), across))
    return build.finished()


def data_tasks(
    blocks: Sequence[Block], speeds: Speeds, *, machines: int, gpus: int, prefetch: int
) -> tuple[Task, ...]:
    """Return the operations of one machine, every GPU holding the whole model.

    Nothing is gathered, so `prefetch` makes no difference.
    """
    del prefetch
    ring = _Ring(speeds, machines, gpus)
    build = _Builder(speeds, 0)
    for block in blocks:
        build.forward(block, ())
    for block in reversed(blocks):
        build.backward(block, ())
        build.reduce(block, (ring.all_reduce(block.reduce_bytes),))
    return build.finished()


@dataclass(frozen=True, slots=True)
class _Hop:
    """A collective as one operation of a lane."""

    lane: Lane
    size_bytes: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class _Ring:
    """A ring over all ranks, which the slower of network card and links paces."""

    speeds: Speeds
    machines: int
    gpus: int

    def gather(self, size_bytes: int) -> _Hop:
        """All-gather or reduce-scatter: each hop carries (R - 1)/R of the bytes."""
        return self._carry(size_bytes, 1)

    def all_reduce(self, size_bytes: int) -> _Hop:
        """A reduce-scatter and an all-gather."""
        return self._carry(size_bytes, 2)

    def _carry(self, size_bytes: int, times: int) -> _Hop:
        ranks = self.machines * self.gpus
        carried = -(-times * size_bytes * (ranks - 1) // ranks)
        lane = Lane.NETWORK if self.machines > 1 else Lane.LINK
        if carried == 0:
            return _Hop(lane, 0, 0)
        duration_ns = self.speeds.link.transfer_ns(carried) if self.gpus > 1 else 0
        if self.machines > 1:
            duration_ns = max(duration_ns, self.speeds.collective.transfer_ns(carried))
        return _Hop(lane, carried, duration_ns)


def _across_machines(speeds: Speeds, size_bytes: int, machines: int) -> _Hop:
    """All-reduce between machines: each GPU its shard, all through one network card."""
    carried = -(-2 * size_bytes * (machines - 1) // machines)
    return _Hop(Lane.NETWORK, carried, speeds.collective.transfer_ns(carried) if carried else 0)


@dataclass(slots=True)
class _Builder:
    """Appends operations in order, and knows what the next ones wait for."""

    speeds: Speeds
    prefetch: int
    tasks: list[Task] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)  # last task of each computation so far
    reduced: list[int] = field(default_factory=list)

    def gather(self, block: Block, hop: _Hop) -> tuple[int, ...]:
        # A block's memory is free again once the block `prefetch` before it has started, that is,
        # once the one before that has ended.
        before = len(self.computed) - self.prefetch - 1
        after = (self.computed[before],) if before >= 0 else ()
        return self._move(Kind.GATHER, block, hop, after)

    def forward(self, block: Block, gathered: tuple[int, ...]) -> None:
        task = self._compute(Kind.FORWARD, block, block.forward_flop, gathered)
        self.computed.append(task)

    def backward(self, block: Block, gathered: tuple[int, ...]) -> None:
        if block.recomputed:
            gathered = (self._compute(Kind.RECOMPUTE, block, block.forward_flop, gathered),)
        task = self._compute(Kind.BACKWARD, block, 2 * block.forward_flop, gathered)
        self.computed.append(task)

    def reduce(self, block: Block, hops: Sequence[_Hop]) -> None:
        after: tuple[int, ...] = (self.computed[-1],)
        for hop in hops:
            after = self._move(Kind.REDUCE, block, hop, after) or after
        self.reduced.extend(after)

    def finished(self) -> tuple[Task, ...]:
        ends = tuple(dict.fromkeys((*self.reduced, self.computed[-1])))
        check = self._add(
            Task("gradient check", Kind.CHECK, Lane.GPU, self.speeds.check_ns, tuple(sorted(ends)))
        )
        self._add(Task("update", Kind.UPDATE, Lane.GPU, self.speeds.update_ns, (check,)))
        return tuple(self.tasks)

    def _compute(self, kind: Kind, block: Block, flop: int, gathered: tuple[int, ...]) -> int:
        after = (*gathered, *self.computed[-1:])
        duration_ns = self.speeds.compute_ns(flop)
        return self._add(Task(f"{kind} {block.name}", kind, Lane.GPU, duration_ns, after))

    def _move(self, kind: Kind, block: Block, hop: _Hop, after: tuple[int, ...]) -> tuple[int, ...]:
        if hop.size_bytes == 0:
            return ()
        task = Task(
            name=f"{kind} {block.name}",
            kind=kind,
            lane=hop.lane,
            duration_ns=hop.duration_ns,
            after=after,
            size_bytes=hop.size_bytes,
        )
        return (self._add(task),)

    def _add(self, task: Task) -> int:
        self.tasks.append(task)
        return len(self.tasks) - 1

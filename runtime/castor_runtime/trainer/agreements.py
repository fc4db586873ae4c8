"""What all ranks of a job tell each other of themselves, over their control group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
import xxhash

from castor_policy.chunk_schedule import Link
from castor_runtime.state.meta import encode
from castor_runtime.state.sections import Section, fingerprint, sections_digest
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.span_profile import fold_spans


def agree_on_fingerprint(
    settings: TrainerSettings, sections: Sequence[Section], control: dist.ProcessGroup
) -> str:
    """Return what all ranks' parts look like, in a digest.

    Args:
        settings: of the trainer.
        sections: of this rank's part.
        control: a gloo group of all ranks.

    Raises:
        ValueError: not every rank trains.
    """
    world = dist.get_world_size(control)
    if world != settings.world_size:
        raise ValueError(
            f"{world} ranks train, but Castor started {settings.world_size}: use them all"
        )
    return fingerprint(
        _of_all(sections_digest(sections), control), settings.ranks_per_machine, settings.replicas
    )


def agree_on_attempt(names: Sequence[bytes], most: int, control: dist.ProcessGroup) -> bytes | None:
    """Return the first of rank 0's names that every rank has; None: there is none.

    Args:
        names: of this rank, 16 bytes each.
        most: how many a rank may have.
        control: a gloo group of all ranks.
    """
    every = _of_all(b"".join(names).ljust(16 * most, b"\0"), control)
    held = [[one[16 * i : 16 * i + 16] for i in range(most)] for one in every]
    common = (name for name in held[0] if any(name) and all(name in one for one in held))
    return next(common, None)


def agree_on_sizes(size_bytes: int, control: dist.ProcessGroup) -> list[int]:
    """Return the sizes of all ranks' parts, by rank.

    Args:
        size_bytes: of this rank's.
        control: a gloo group of all ranks.
    """
    return [int.from_bytes(one, "big") for one in _of_all(size_bytes.to_bytes(8, "big"), control)]


class DisagreementError(RuntimeError):
    """Ranks that are to go on together have loaded different states; says which."""


def check_shared(shared: Mapping[str, object], control: dist.ProcessGroup) -> None:
    """Check that what all ranks share is the same on all of them, before they train on.

    Args:
        shared: by name, what this rank has loaded, as a checkpoint's meta may hold it.
        control: a gloo group of all ranks.

    Raises:
        DisagreementError: it differs; the same on every rank.
    """
    digests = b"".join(xxhash.xxh3_128_digest(encode({"": value})) for value in shared.values())
    every = _of_all(digests, control)
    differing = [
        name
        for at, name in enumerate(shared)
        if len({one[16 * at : 16 * at + 16] for one in every}) > 1
    ]
    if differing:
        odd = [rank for rank, one in enumerate(every) if one != every[0]]
        raise DisagreementError(
            f"ranks {odd} have loaded another {' and another '.join(differing)} than rank 0: "
            "training together would be wrong"
        )


def agree_on_spans(spans_ns: Sequence[int], control: dist.ProcessGroup) -> tuple[int, ...]:
    """Return the mean of all ranks' idle spans, of as many as the rank with the fewest has.

    Args:
        spans_ns: of this rank.
        control: a gloo group of all ranks.
    """
    shared = torch.tensor([len(spans_ns)], dtype=torch.int64)
    dist.all_reduce(shared, dist.ReduceOp.MIN, control)
    total = torch.tensor(fold_spans(spans_ns, int(shared)), dtype=torch.int64)
    dist.all_reduce(total, dist.ReduceOp.SUM, control)
    return tuple(int(span) // dist.get_world_size(control) for span in total)


@dataclass(frozen=True, slots=True)
class Learned:
    """What a generation of trainers knows of its network, the same on all ranks.

    Attributes:
        link: the hop that checkpoints take.
        copy_link: the one to CPU memory; None: there is none.
        spans_ns: that checkpoints are scheduled in; empty: they are still measured.
    """

    link: Link
    copy_link: Link | None = None
    spans_ns: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Return it as text, for another rank or a later process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Learned:
        """Return what `to_json` has written."""
        found = json.loads(text)
        copy_link = found["copy_link"]
        return cls(
            Link(**found["link"]),
            None if copy_link is None else Link(**copy_link),
            tuple(found["spans_ns"]),
        )


def agree_on_learned(learned: Learned | None, control: dist.ProcessGroup) -> Learned | None:
    """Return what the first rank knows that knows anything; None: nobody does.

    Args:
        learned: what this rank knows.
        control: a gloo group of all ranks.
    """
    said = b"" if learned is None else learned.to_json().encode()
    told = _of_first(said, agree_on_sizes(len(said), control), control)
    return Learned.from_json(told.decode()) if told else None


def agree_on_trace(trace: bytes, control: dist.ProcessGroup) -> bytes:
    """Return what all ranks know that know anything; b"": nobody does, or not all the same.

    Args:
        trace: what this rank knows; b"": nothing.
        control: a gloo group of all ranks.
    """
    every = _of_all(len(trace).to_bytes(8, "big") + xxhash.xxh3_128_digest(trace), control)
    sizes = [int.from_bytes(one[:8], "big") for one in every]
    differ = len({one for one, size in zip(every, sizes, strict=True) if size}) > 1
    return b"" if differ else _of_first(trace, sizes, control)


def all_can(can: bool, control: dist.ProcessGroup) -> bool:
    """Return whether every rank can.

    Args:
        can: whether this one can.
        control: a gloo group of all ranks.
    """
    shared = torch.tensor([int(can)])
    dist.all_reduce(shared, dist.ReduceOp.MIN, control)
    return bool(shared[0])


def _of_first(said: bytes, sizes: Sequence[int], control: dist.ProcessGroup) -> bytes:
    """Return the word of the first rank that has any; `sizes` are those of all ranks' words."""
    first = next((rank for rank, size in enumerate(sizes) if size), None)
    if first is None:
        return b""
    mine = said if control.rank() == first else bytes(sizes[first])
    told = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    dist.broadcast(told, first, control)
    return told.numpy().tobytes()


def _of_all(said: bytes, control: dist.ProcessGroup) -> list[bytes]:
    mine = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(control))]
    dist.all_gather(every, mine, control)
    return [one.numpy().tobytes() for one in every]

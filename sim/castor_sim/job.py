"""One training job on one cluster: the figures that a strategy computes its costs from."""

from __future__ import annotations

from dataclasses import dataclass

NS_PER_S = 1_000_000_000


def transfer_ns(size_bytes: int, bandwidth_bps: int) -> int:
    """Return the time to move `size_bytes` at `bandwidth_bps`, rounded up to whole ns."""
    return -(-size_bytes * 8 * NS_PER_S // bandwidth_bps)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as strategies see it; times in ns, sizes in bytes, bandwidths in bits per second.

    Attributes:
        machines: N.
        gpus_per_machine: GPUs of each.
        replicas: m, copies of each shard in CPU memory, its own machine's included.
        iteration_ns: T_iter without checkpoints.
        network_idle_ns: idle network time within one iteration, into which checkpoint traffic
            fits at no cost.
        checkpoint_bytes: the whole model state, all shards together.
        network_bps: what checkpoint traffic reaches between two machines.
        storage_bps: what all machines together get from the persistent storage.
        gpu_to_cpu_bps: one machine's copies between GPU and CPU memory.
        torch_save_bps: what torch.save and torch.load reach on one machine.
        warm_up_ns: from loaded states to the first iteration.
        detection_ns: typical time from a failure until it is known.
        interruptions_per_s: how often a failure stops the job; what fails together counts once.
    """

    machines: int
    gpus_per_machine: int
    replicas: int
    iteration_ns: int
    network_idle_ns: int
    checkpoint_bytes: int
    network_bps: int
    storage_bps: int
    gpu_to_cpu_bps: int
    torch_save_bps: int
    warm_up_ns: int
    detection_ns: int
    interruptions_per_s: float

    @property
    def gpus(self) -> int:
        """All GPUs of the job."""
        return self.machines * self.gpus_per_machine

    @property
    def shard_bytes(self) -> int:
        """The state of one machine's ranks."""
        return -(-self.checkpoint_bytes // self.machines)

    def network_ns(self, copies: int = 1) -> int:
        """Time to send `copies` of one machine's shard to other machines."""
        return transfer_ns(self.shard_bytes * copies, self.network_bps)

    def storage_ns(self) -> int:
        """Time for all machines to write or read the whole state; they share the bandwidth."""
        return transfer_ns(self.checkpoint_bytes, self.storage_bps)

    def gpu_copy_ns(self) -> int:
        """Time to copy one machine's shard between GPU and CPU memory."""
        return transfer_ns(self.shard_bytes, self.gpu_to_cpu_bps)

    def serialisation_ns(self, copies: int = 1) -> int:
        """Time of torch.save or torch.load over `copies` of one machine's shard."""
        return transfer_ns(self.shard_bytes * copies, self.torch_save_bps)

"""Has a segment's pages lie on the NUMA node nearest to the GPU that copies to and from them.

The kernel puts a page on the node of the thread that touches it first, here some thread of the
agent's, wherever that ran; half of a machine's checkpoint memory would be copied over the link
between its sockets. So a new segment gets a policy before any page of it is taken: mbind(2) with
MPOL_PREFERRED, never MPOL_BIND, for memory elsewhere is better than none. A file in tmpfs keeps its
policy itself, whichever process or thread touches a page later (kernel: numa_memory_policy.rst,
"Shared Policy", and shmem_set_policy; what mbind(2) says of MAP_SHARED is true of other files).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSTEM = Path("/")

_NODES = "sys/devices/system/node"
_PCI_DEVICES = "sys/bus/pci/devices"
_DRIVERS_GPUS = "proc/driver/nvidia/gpus"
_MBIND: Final = {"x86_64": 237, "aarch64": 235}.get(platform.machine())
_MPOL_PREFERRED: Final = 1
_MASK_BITS: Final = 1024  # as many nodes as kernels are built for, at most


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of NVIDIA's that this process may use.

    Attributes:
        address: on PCI, as the kernel writes it.
        uuid: as the driver says it; "" where it does not.
        node: that it is at; None where that is not known.
    """

    address: str
    uuid: str
    node: int | None


@dataclass(frozen=True, slots=True)
class Topology:
    """NUMA nodes and GPUs of this machine.

    Attributes:
        nodes: those with processors, ascending: memory of others is a GPU's own, or slow.
        gpus: by address, which is nvidia-smi's order; none are looked for where one node is.
    """

    nodes: tuple[int, ...]
    gpus: tuple[Gpu, ...]

    @classmethod
    def read(cls, root: Path = SYSTEM) -> Topology:
        """Read it from what the kernel and the driver say; what cannot be read is not there.

        Args:
            root: under which /sys, /proc and /dev are.
        """
        named = (root / _NODES).glob("node[0-9]*/cpulist")
        nodes = tuple(sorted(int(path.parent.name[4:]) for path in named if _read(path)))
        if len(nodes) < 2:
            return cls(nodes, ())
        found = (_read_gpu(root, path, nodes) for path in (root / _DRIVERS_GPUS).glob("*"))
        gpus = (gpu for gpu in found if gpu is not None)
        return cls(nodes, tuple(sorted(gpus, key=lambda gpu: _pci_order(gpu.address))))

    def gpu_nodes(self, environment: Mapping[str, str]) -> tuple[int | None, ...]:
        """Return the node of each of CUDA's devices 0, 1, ...; None where it is not known.

        CUDA is taken to number GPUs by PCI address. It does with CUDA_DEVICE_ORDER=PCI_BUS_ID and,
        by experience, without it where all are of one model; else its order is its own affair.

        Args:
            environment: of the trainers. CUDA_VISIBLE_DEVICES names devices by number or UUID, or
                the start of one; what follows a name of none is left out, as CUDA does. The node of
                a MIG device is not known. DS_ACCELERATOR=cpu: there are none.
        """
        if environment.get("DS_ACCELERATOR", "cuda") != "cuda":
            return ()
        named = environment.get("CUDA_VISIBLE_DEVICES")
        if named is None:
            return tuple(gpu.node for gpu in self.gpus)
        nodes: list[int | None] = []
        for name in map(str.strip, named.split(",")):
            if name.startswith("MIG-"):
                nodes.append(None)
            elif (gpu := self._named(name)) is not None:
                nodes.append(gpu.node)
            else:
                break
        return tuple(nodes)

    def _named(self, name: str) -> Gpu | None:
        if name.isdecimal():
            return self.gpus[int(name)] if int(name) < len(self.gpus) else None
        alike = [gpu for gpu in self.gpus if name and gpu.uuid.startswith(name)]
        return alike[0] if len(alike) == 1 else None


class NearGpus:
    """Says of each segment where it is to lie, and has the kernel put it there.

    The trainer of local rank i uses CUDA's device i. It copies its own part, and it receives the
    parts of the same local rank of other machines (`TrainerSettings.sources`).

    Args:
        nodes: by CUDA's device, as of `Topology.gpu_nodes`.
        ranks_per_machine: R; rank r is of local rank r modulo R.
    """

    def __init__(self, nodes: Sequence[int | None], ranks_per_machine: int) -> None:
        self._nodes = tuple(nodes)
        self._ranks = ranks_per_machine
        self._told = False

    def node_of(self, rank: int) -> int | None:
        """Return the node for a part; None: wherever the kernel puts it."""
        local_rank = rank % self._ranks
        return self._nodes[local_rank] if local_rank < len(self._nodes) else None

    def place(self, rank: int, mapped: mmap.mmap) -> None:
        """Ask for the node of `rank` for a new segment, no page of which has been touched yet.

        Where the kernel refuses, that is told of once, and memory is as without.
        """
        node = self.node_of(rank)
        if node is None:
            return
        try:
            prefer_node(mapped, node)
        except OSError as error:
            if not self._told:
                self._told = True
                sys.stderr.write(
                    f"castor: checkpoint memory lies where the kernel puts it, not near GPUs: "
                    f"{why_refused(node, error)}\n"
                )


def prefer_node(mapped: mmap.mmap, node: int) -> None:
    """Have pages of a mapping that are taken from now on lie on `node`, where it has room.

    Raises:
        OSError: the kernel refuses: EPERM or ENOSYS in a container that forbids the call, EINVAL
            for a node that has no memory or none for this process.
    """
    if _MBIND is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    word = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (_MASK_BITS // word))()
    mask[node // word] = 1 << node % word
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    arguments = (
        ctypes.c_long(_MBIND),
        ctypes.c_void_p(address),
        ctypes.c_ulong(len(mapped)),
        ctypes.c_int(_MPOL_PREFERRED),
        mask,
        ctypes.c_ulong(_MASK_BITS + 1),  # the kernel takes one less
        ctypes.c_uint(0),
    )
    if _LIBC.syscall(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def why_refused(node: int, error: OSError) -> str:
    """Return in words what the kernel refused, and what helps."""
    advice = ""
    if error.errno in (errno.EPERM, errno.ENOSYS):
        advice = "; a container may be let: docker run --cap-add SYS_NICE"
    elif error.errno == errno.EINVAL:
        advice = "; it has no memory, or a cpuset (cpuset.mems) keeps this process from it"
    return f"mbind to node {node}: {error.strerror}{advice}"


def _read_gpu(root: Path, told: Path, nodes: Sequence[int]) -> Gpu | None:
    """Return the GPU of a folder of the driver's; None if this process may not open it."""
    lines = (line.partition(":") for line in _read(told / "information").splitlines())
    said = {key.strip(): value.strip() for key, _, value in lines}
    # In a container, or under Slurm's device limits, CUDA counts those alone that it may open.
    device = root / f"dev/nvidia{said.get('Device Minor', '')}"
    if not os.access(device, os.R_OK | os.W_OK):
        return None
    node = _read(root / _PCI_DEVICES / told.name.lower() / "numa_node")
    known = int(node) if node.isdecimal() and int(node) in nodes else None  # -1: not known
    return Gpu(told.name, said.get("GPU UUID", ""), known)


def _pci_order(address: str) -> tuple[int, ...]:
    return tuple(int(field, 16) for field in address.replace(".", ":").split(":"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

"""The systems that are measured, and how each is started, as its documents say."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table.

    Attributes:
        name: shown.
        package: the distribution whose version is shown.
        program: a script of this folder.
        command: makes the command line from (ranks, out folder, the program and its options).
        environment: added to.
        peer_copy: it keeps a copy in another rank's memory.
        note: what a reader must know.
        warm_up: iterations before the timed ones; longer where spares are built in them.
    """

    name: str
    package: str
    program: str
    command: Callable[[int, Path, Sequence[str]], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    peer_copy: bool = False
    note: str = ""
    warm_up: int = 3

    @property
    def version(self) -> str:
        """Of the package."""
        return version(self.package)


def torchrun(ranks: int, out: Path, program: Sequence[str]) -> list[str]:
    """Restart all ranks once when one dies; a rendezvous of its own for each life."""
    del out
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1"),
        *("--nproc-per-node", str(ranks), "--max-restarts", "1", "--monitor-interval", "0.1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{_free_port()}"),
        *program,
    ]


def dlrover_run(ranks: int, out: Path, program: Sequence[str]) -> list[str]:
    """Start under DLRover's own launcher, whose agent holds the shared memory."""
    del out
    return [sys.executable, str(HERE / "dlrover_job.py"), str(ranks), *program]


def castor_train(given: Sequence[str], ranks: int, out: Path, program: Sequence[str]) -> list[str]:
    """One machine a rank, m = 2, one standby; a machine is killed after the rank has recovered."""
    script, *options = program
    return [
        *(str(BIN / "castor"), "train", script, "--nodes", str(ranks), "--standby", "1"),
        *("--replicas", "2", *given, "--out", str(out / "run"), "--quiet"),
        *("--", *options, "--machine-loss"),
    ]


_RESTARTS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

SYSTEMS: dict[str, System] = {
    "castor": System(
        "Castor",
        "castor-ckpt",
        "peer_castor.py",
        partial(castor_train, ("--memory", "fast")),
        peer_copy=True,
        note="updates go on once the state is copied, as in the others; by default Castor's wait "
        "until the replicas have arrived (Checkpointer's update_after)",
    ),
    "castor-in-place": System(
        "Castor, in place",
        "castor-ckpt",
        "peer_castor_in_place.py",
        partial(castor_train, ("--memory", "fast", "--warm-spares")),
        peer_copy=True,
        note="goes on without a restart (`Checkpointer.iteration()`); --warm-spares has a second "
        "process beside each trainer, whose memory is counted",
        warm_up=8,
    ),
    "castor-saving": System(
        "Castor, memory saved",
        "castor-ckpt",
        "peer_castor.py",
        partial(castor_train, ("--memory", "saving")),
        peer_copy=True,
        note="one buffer less (--memory saving): the state is copied once the peers have theirs, "
        "and updates wait for that",
    ),
    "lm-resiliency": System(
        "lm-resiliency",
        "lm-resiliency",
        "peer_lm_resiliency.py",
        torchrun,
        _RESTARTS,
        peer_copy=True,
        note="after a kill it restarts from files that dying ranks write; all ranks see one folder",
    ),
    "dlrover": System(
        "DLRover flash checkpoint",
        "dlrover",
        "peer_dlrover.py",
        dlrover_run,
        note="no copy on a peer: usable is when its own node's memory has it",
    ),
    "dcp-thread": System(
        "DCP async_save, thread",
        "torch",
        "peer_dcp.py",
        torchrun,
        _RESTARTS | {"BENCH_DCP": "thread"},
        note="no copy on a peer: usable is when the files in memory (tmpfs) are whole",
    ),
    "dcp-process": System(
        "DCP async_save, process",
        "torch",
        "peer_dcp.py",
        torchrun,
        _RESTARTS | {"BENCH_DCP": "process"},
        note="no copy on a peer: usable is when the files in memory (tmpfs) are whole",
    ),
    "deepspeed": System(
        "DeepSpeed save_checkpoint",
        "deepspeed",
        "peer_deepspeed.py",
        torchrun,
        _RESTARTS,
        note="no copy on a peer: usable is when the files in memory (tmpfs) are whole",
    ),
}

FLOORS = System("floor", "torch", "floors.py", torchrun)


def environment(system: System) -> dict[str, str]:
    """Return the environment of a system's processes: one thread a rank, no GPU."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE),
        "PYTHONWARNINGS": "ignore",
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        **system.environment,
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

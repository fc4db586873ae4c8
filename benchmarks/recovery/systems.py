"""Start one system's job, wait for what happens in it, kill a rank or a machine of it, end it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil
from rank_log import Record, of_kind, read_logs

from castor_records.event_log import merge
from castor_records.events.event import Entry, Event
from castor_records.events.event import of_kind as entries_of
from castor_records.events.failures import Failed, SpareReady, SpareTaken
from castor_runtime.launcher.control import ask
from castor_runtime.launcher.run_folder import RunFolder

HERE = Path(__file__).resolve().parent
JOB = str(HERE / "job.py")
BIN = Path(sys.executable).parent
POLL_S = 0.05
START_LIMIT_S = 180.0
MEMORY = Path("/dev/shm") / f"bench-recovery-{os.getpid()}"
"""Folders that stand for a node's memory and for the storage; removed with the run."""


class RunError(Exception):
    """A run did not do what it should; says what, and the end of its output."""


class SystemRun:
    """A job under way.

    Args:
        command: starts it; it gets a process group of its own.
        out: folder of its records and output, emptied first.
        ranks: how many train.
    """

    def __init__(self, command: Sequence[str], out: Path, ranks: int) -> None:
        self.out, self.ranks = out, ranks
        self.command = tuple(command)
        self._output = (out / "output.txt").open("wb")
        self.process = subprocess.Popen(
            self.command,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def logs(self) -> list[list[Record]]:
        """Return each rank's records so far."""
        return read_logs(self.out / "records", self.ranks)

    def wait(
        self, done: Callable[[], bool], what: str, limit_s: float, poll_s: float = POLL_S
    ) -> None:
        """Return once `done`, which is asked every `poll_s`.

        Raises:
            RunError: it did not happen in time, or the job ended.
        """
        deadline = time.monotonic() + limit_s
        while not done():
            if self.process.poll() is not None and not done():
                raise RunError(f"ended with {self.process.returncode} before {what}: {self.tail()}")
            if time.monotonic() > deadline:
                raise RunError(f"no sign of {what} in {limit_s:.0f} s: {self.tail()}")
            time.sleep(poll_s)

    def ended(self, iteration: int) -> bool:
        """Say whether all ranks have ended that iteration."""
        return all(_last(records) >= iteration for records in self.logs())

    def kill_rank(self, rank: int) -> int:
        """Kill -9 a rank; return when."""
        pid = self.logs()[rank][-1]["pid"]
        now_ns = time.time_ns()
        os.kill(pid, signal.SIGKILL)
        return now_ns

    def stop(self) -> None:
        """End it; no process and nothing in memory is left."""
        below = _tree(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            below += _tree(self.process.pid)
        for process in below:  # psutil knows whether the process id has been given away
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._output.close()
        shutil.rmtree(MEMORY, ignore_errors=True)

    def tail(self) -> str:
        """Return the end of what it printed."""
        return (self.out / "output.txt").read_text(errors="replace")[-600:]


class CastorRun(SystemRun):
    """`castor train` under way."""

    @property
    def folder(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(self.out / "run")

    def entries(self) -> list[Entry[Event]]:
        """Return all agents' and the launcher's events so far, by time."""
        return merge(self.folder.event_logs())

    @property
    def started_ns(self) -> int:
        """CLOCK_REALTIME of the events' zero."""
        return self.folder.run().started_ns

    def spares_stand(self) -> bool:
        """Whether a warm spare waits beside each trainer."""
        entries = self.entries()
        taken = len(list(entries_of(entries, SpareTaken)))
        return len(list(entries_of(entries, SpareReady))) >= self.ranks + taken

    def kill_rank(self, rank: int) -> int:
        """Kill -9 a rank; return when."""
        return self.strike(f"rank:{rank}")

    def strike(self, target: str) -> int:
        """Inject a failure, as `castor kill` does; return when it struck, CLOCK_REALTIME."""
        answer = ask(self.folder.control_socket, {"op": "inject", "fault": f"{target}@now"})
        if not answer or not answer["ok"]:
            raise RunError(f"{target} could not be killed: {answer}")
        failures = list(entries_of(self.entries(), Failed))
        return self.started_ns + failures[-1].time_ns


def castor(
    out: Path, ranks: int, job: Sequence[str], *options: str, replicas: int = 2
) -> CastorRun:
    """Start `castor train` on one machine a rank."""
    _empty(out)
    command = [
        *(str(BIN / "castor"), "train", JOB, "--nodes", str(ranks), "--replicas", str(replicas)),
        *("--out", str(out / "run"), "--quiet", *options, "--", "--system", "castor"),
        *("--records", str(out / "records"), *job),
    ]
    return CastorRun(command, out, ranks)


def torchrun(out: Path, ranks: int, system: str, job: Sequence[str]) -> SystemRun:
    """Start under torchrun, which kills and restarts all ranks when one dies."""
    _empty(out)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(ranks), "--max-restarts", "100", "--monitor-interval", "0.1"),
        *(JOB, "--system", system, "--records", str(out / "records"), *job),
    ]
    return SystemRun(command, out, ranks)


def warm_start(out: Path, ranks: int, system: str, job: Sequence[str]) -> SystemRun:
    """Start ranks that are forked from a process with everything imported."""
    _empty(out)
    command = [
        *(sys.executable, str(HERE / "warm_start.py"), str(ranks), str(out), JOB),
        *("--system", system, "--records", str(out / "records"), *job),
    ]
    return SystemRun(command, out, ranks)


def storage_options(every: int, bytes_per_s: float) -> list[str]:
    """Return the job's options for checkpoints to storage."""
    return [
        *("--every", str(every), "--storage-bytes-per-s", str(bytes_per_s)),
        *("--storage", str(MEMORY / "storage"), "--staging", str(MEMORY / "staging")),
    ]


def _empty(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(MEMORY, ignore_errors=True)
    out.mkdir(parents=True)


def _last(records: list[Record]) -> int:
    ended = of_kind(records, "iteration_ended")
    return int(ended[-1]["iteration"]) if ended else 0


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _environment() -> dict[str, str]:
    """Return the environment of every system: one thread a rank, no GPU."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONWARNINGS": "ignore",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # each life of the job a rendezvous of its own
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }

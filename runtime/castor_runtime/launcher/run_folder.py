"""The folder of one run, for those who make it, and what runs there."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from castor_configs.atomic import output_folder, write_text
from castor_configs.errors import InputError
from castor_records.run_files import RunFiles
from castor_records.run_record import RunRecord
from castor_runtime.processes import is_alive, started_before

_OURS = (
    "job.toml",
    "events.jsonl",
    "launcher.jsonl",
    "secret",
    "control.sock",
    "fork-server.log",
    "storage.log",
    "agents",
    "strangers",
    "etcd",
)
_SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies, not a temporary file


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """agents/NAME/agent.json: what an agent says of its own processes and memory.

    Attributes:
        name: of the agent.
        incarnation: which life of it.
        pid: its process.
        fork_server_pid: the process that its trainers are forked from.
        trainers: rank -> process.
        generation: of these trainers.
        machine: which one it fills; None for a standby.
        segments: rank -> name of the shared memory that holds its replica here.
        control: name of the control block's segment, "" if there is none yet.
        written_s: CLOCK_REALTIME of the file.
    """

    name: str
    incarnation: str
    pid: int
    fork_server_pid: int
    trainers: dict[int, int]
    generation: int
    machine: int | None
    segments: dict[int, str]
    control: str
    written_s: float

    @property
    def lives(self) -> bool:
        """Its process is there, and is the one that wrote the record."""
        return started_before(self.pid, self.written_s)

    def memory_bytes(self) -> int:
        """Return the bytes of its shared memory that are in use."""
        total = 0
        for name in [*self.segments.values(), self.control]:
            try:
                total += (_SHM / name.lstrip("/")).stat().st_blocks * 512 if name else 0
            except FileNotFoundError:
                continue
        return total


@dataclass(frozen=True, slots=True)
class RunFolder(RunFiles):
    """Where everything of one run lies: to be made, and with the processes that live there."""

    def record(self, name: str) -> AgentRecord | None:
        """Return what an agent last wrote of itself; None if nothing (yet)."""
        file = self.agent(name) / "agent.json"
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            return AgentRecord(
                name=name,
                incarnation=str(document["incarnation"]),
                pid=int(document["pid"]),
                fork_server_pid=int(document.get("fork_server_pid") or 0),
                trainers={int(k): int(v) for k, v in document["trainers"].items()},
                generation=int(document["generation"]),
                machine=document["machine"],
                segments=_segments(document.get("segments") or {}),
                control=str(document.get("control") or ""),
                written_s=file.stat().st_mtime,
            )
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def records(self) -> list[AgentRecord]:
        """Return what all agents last wrote, by name; of dead ones too."""
        found = (self.record(name) for name in self.agent_names())
        return [record for record in found if record is not None]

    def is_live(self) -> bool:
        """Say whether its launcher runs."""
        return started_before(self.run().pid, self.run_file.stat().st_mtime)

    def prepare(self, job_file: str = "", *, overwrite: bool) -> None:
        """Make the folder, or empty it of an earlier run; whatever else lies there is left alone.

        `job_file` is what job.toml shall hold; "": there is to be none.

        Raises:
            InputError: a run is going on there, or has ended there and `overwrite` is not given,
                or something else lies there.
        """
        output_folder(self.path)
        if self.run_file.exists():
            if self.is_live():
                raise InputError(
                    f"a run is going on there (process {self.run().pid})", file=self.path
                )
            if self.result_file.exists() and not overwrite:
                raise InputError(
                    "holds the result of a run: give --overwrite or another --out", file=self.path
                )
        elif any((self.path / name).exists() for name in _OURS):
            raise InputError("holds files that are not a run's; give another --out", file=self.path)
        self._clear((*_OURS, "run.json", "result.json"))
        self.agent("").mkdir(parents=True)
        if job_file:
            write_text(self.job_file, job_file)

    def prepare_to_resume(self) -> None:
        """Clear away what the next part of the same run makes anew; logs and the secret stay.

        Raises:
            InputError: this is no run folder, or the run goes on.
        """
        if self.is_live():
            raise InputError(
                f"the run goes on (process {self.run().pid}): there is nothing to resume",
                file=self.path,
            )
        self._clear(("etcd", "control.sock", "result.json"))
        for name in self.agent_names():
            (self.agent(name) / "final.json").unlink(missing_ok=True)

    def _clear(self, names: Sequence[str]) -> None:
        for name in names:
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def write_run(self, record: RunRecord) -> None:
        """Write run.json, whole or not at all."""
        write_text(self.run_file, json.dumps(record.to_json(), indent=2) + "\n")

    def write_secret(self) -> None:
        """Make the job's secret: 32 random bytes in hexadecimal, mode 0600 from the first byte."""
        descriptor = os.open(self.secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")


def newest_run(root: Path = Path("out")) -> RunFolder:
    """Return the run under `root` that began last, a live one before all that have ended.

    Raises:
        InputError: there is none.
    """
    runs = [RunFolder(path.parent) for path in sorted(root.glob("*/run.json"))]
    if not runs:
        raise InputError(f"no run under {root}: name its folder with --run DIR", key="--run")
    return max(runs, key=lambda run: (run.is_live(), run.run_file.stat().st_mtime))


def trainer_of(record: AgentRecord, rank: int) -> int | None:
    """Return the process of `rank`, if it lives and is the one that `record` speaks of."""
    pid = record.trainers.get(rank, 0)
    return pid if is_alive(pid) and started_before(pid, record.written_s) else None


def _segments(document: dict[str, str] | list[str]) -> dict[int, str]:
    if isinstance(document, list):
        # Segments are named castor-JOB-AGENT-rRANK.
        return {int(name.rpartition("-r")[2]): name for name in document}
    return {int(rank): name for rank, name in document.items()}

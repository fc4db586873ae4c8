"""The folder of one run: what lies where, and the small documents in it.

run.json            this run: job, store, nodes, pids (written by the launcher)
job.toml            the job as it was given, all options in it: `castor train` takes it again
result.json         its outcome, once it has ended
events.jsonl        what happened, of all agents and the launcher, on one clock
launcher.jsonl      the launcher's own events
secret              the job's secret, readable by its owner alone
control.sock        where `castor kill` asks the launcher
fork-server.log     of the process that agents are forked from
storage.log         of the emulated storage host, on an emulated cluster
etcd/               data and log of the embedded etcd
agents/NAME/        agent.json, agent.log, events.jsonl, final.json, rank-R.log
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor_configs.errors import InputError
from castor_records.result import Result
from castor_records.run_record import RunRecord


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where everything of one run lies, and how its documents are read."""

    path: Path

    @property
    def run_file(self) -> Path:
        """What run this is."""
        return self.path / "run.json"

    @property
    def job_file(self) -> Path:
        """The job, as `castor train` takes it."""
        return self.path / "job.toml"

    @property
    def result_file(self) -> Path:
        """Its outcome."""
        return self.path / "result.json"

    @property
    def events_file(self) -> Path:
        """The merged event log."""
        return self.path / "events.jsonl"

    @property
    def launcher_events(self) -> Path:
        """The launcher's own events."""
        return self.path / "launcher.jsonl"

    def event_logs(self) -> list[Path]:
        """Return the logs of the launcher and of all agents, which `merge` makes one of."""
        return [
            self.launcher_events,
            *(self.agent(name) / "events.jsonl" for name in self.agent_names()),
        ]

    @property
    def secret_file(self) -> Path:
        """The job's secret."""
        return self.path / "secret"

    @property
    def control_socket(self) -> Path:
        """Where the launcher listens."""
        return self.path / "control.sock"

    @property
    def fork_server_log(self) -> Path:
        """What the process that agents are forked from prints."""
        return self.path / "fork-server.log"

    @property
    def storage_log(self) -> Path:
        """What the emulated storage host prints."""
        return self.path / "storage.log"

    @property
    def etcd(self) -> Path:
        """Of the embedded etcd."""
        return self.path / "etcd"

    @property
    def strangers(self) -> Path:
        """What agents that a fault has started beside the run's own have left."""
        return self.path / "strangers"

    def agent(self, name: str) -> Path:
        """Return the folder of an agent."""
        return self.path / "agents" / name

    def agent_names(self) -> list[str]:
        """Return the agents that have a folder, sorted."""
        # Asked for many times a second by who follows the logs: a glob takes ten times as long.
        try:
            with os.scandir(self.path / "agents") as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except FileNotFoundError:
            return []

    def run(self) -> RunRecord:
        """Return run.json.

        Raises:
            InputError: this is no run folder, or the file is damaged.
        """
        document = self._document(self.run_file, "is no run folder: it has no run.json")
        try:
            return RunRecord.of_json(document)
        except ValueError as error:
            raise InputError(f"is damaged: {error}", file=self.run_file) from None

    def result(self) -> Result:
        """Return result.json.

        Raises:
            InputError: this is no run folder, the run has not ended, or the file is damaged.
        """
        self.run()
        file = self.result_file
        document = self._document(file, "has no result yet: wait until the run ends")
        try:
            return Result.of_json(document)
        except ValueError as error:
            raise InputError(
                f"is damaged, or an earlier version of Castor wrote it: {error}; copy it again, or "
                "leave the run out",
                file=file,
            ) from None

    def _document(self, file: Path, absent: str) -> dict[str, Any]:
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(absent, file=self.path) from None
        except ValueError as error:  # no JSON, or no UTF-8
            raise InputError(f"is damaged: {error}", file=file) from None
        if not isinstance(document, dict):
            raise InputError("is damaged: expected a JSON object", file=file)
        return document


def journals_in(agent: Path) -> list[Path]:
    """Return the journals in an agent's folder, in the order in which they were last written to.

    Of a life whose journal was put away once, the two files follow each other.
    """
    files = agent.glob("journal-*.jsonl")
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))

"""One run of `castor train` as a process of its own, and what it left behind.

Everything below the process carries a token in its environment, which forks inherit and nobody can
shake off, so that a process left behind is found whatever it calls itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from castor_configs.errors import InputError
from castor_lab.soak.warm_start import TOKEN, TOKEN_LENGTH, WarmProcess, WarmStart
from castor_records.events.event import E, Entry, Event, of_kind
from castor_records.events.line import parse_line
from castor_records.events.training import IterationEnded
from castor_runtime.arena.removal import free
from castor_runtime.launcher.control import ask
from castor_runtime.processes import is_alive, send

_SHM = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies, not a temporary file
_DEATH_S: Final = 10.0
"""For the kernel to carry out, on a loaded machine, what the end of a parent brings about."""


class TrialTimeoutError(Exception):
    """A run, or what was waited for in it, took too long."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How a run ended.

    Attributes:
        folder: its run folder.
        code: exit code of `castor train`.
        output: what it printed, stdout and stderr together.
        result: result.json; empty if there is none.
        events: the merged event log.
        processes_left: command lines of processes that outlived it.
        memory_left: names in /dev/shm that outlived it; those of a job that gave up are kept on
            purpose, where `result` has `kept_memory`.
    """

    folder: Path
    code: int
    output: str
    result: Mapping[str, Any]
    events: tuple[Entry[Event], ...]
    processes_left: tuple[str, ...]
    memory_left: tuple[str, ...]

    @property
    def sha256(self) -> str | None:
        """Of the final state over all ranks; None if the run has not come to it."""
        found = self.result.get("final_state_sha256")
        return None if found is None else str(found)

    @property
    def recoveries(self) -> list[dict[str, Any]]:
        """What result.json says of each."""
        return list(self.result.get("recoveries", ()))

    def of(self, kind: type[E]) -> list[Entry[E]]:
        """Return the events of a kind, by time."""
        return list(of_kind(self.events, kind))


_warm: WarmStart | None = None


@contextmanager
def warm_starts() -> Iterator[None]:
    """Inside the `with`, fork runs from one process that has imported all, where that can be."""
    global _warm  # noqa: PLW0603 - like the imports themselves, of all of this process
    with contextlib.closing(WarmStart()) as _warm:
        yield
    _warm = None


Process = subprocess.Popen[bytes] | WarmProcess


def start_castor(
    arguments: Sequence[str],
    output: Path,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Process:
    """Start the command `castor` in a session of its own.

    Args:
        arguments: of the command.
        output: a file; what it prints is written at its end.
        environment: on top of this process's own.
        folder: where it runs; None for this process's.
    """
    command = [str(Path(sys.executable).with_name("castor")), *arguments]
    environment = {**os.environ, **(environment or {})}
    with output.open("ab") as file:
        if _warm is not None and _warm.can_start(environment):
            return _warm.start(command, output, environment, folder or Path.cwd())
        return subprocess.Popen(  # noqa: S603 - our own command, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )


class Running:
    """A run that is going on.

    Args:
        folder: becomes its run folder; output.txt is written beside it.
        arguments: of `castor train`, without --out and --job.
        environment: on top of this process's own.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.job = f"t{secrets.token_hex(4)}"
        self._token = secrets.token_hex(TOKEN_LENGTH // 2)
        self._output = folder.with_name(folder.name + "-output.txt")
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._output.write_bytes(b"")
        self.process = start_castor(
            ["train", "--job", self.job, "--out", str(folder), *arguments],
            self._output,
            environment={**(environment or {}), TOKEN: self._token},
        )

    def output(self) -> str:
        """Return what it has printed so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def events(self) -> list[Entry[Event]]:
        """Return what all agents and the launcher have logged so far, by time."""
        logs = [*sorted(self.folder.glob("agents/*/events.jsonl")), self.folder / "launcher.jsonl"]
        found: list[Entry[Event]] = []
        for log in logs:
            with contextlib.suppress(FileNotFoundError):
                for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
                    # The last line may be half written.
                    entry = parse_line(line) if line.endswith("\n") else None
                    found += [] if entry is None else [entry]
        return sorted(found, key=lambda entry: entry.time_ns)

    def iteration(self) -> int:
        """Return the newest iteration that any rank has ended."""
        ended = of_kind(self.events(), IterationEnded)
        return max((entry.event.iteration for entry in ended), default=0)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
        """Wait until `condition` holds.

        Raises:
            TrialTimeoutError: it does not come to hold, or the run ended before.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise TrialTimeoutError(f"not {what}:\n{self.output()[-4000:]}")
            time.sleep(0.05)

    def processes(self) -> dict[int, str]:
        """Return the live processes of this run: number -> command line."""
        sign = f"{TOKEN}={self._token}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or not is_alive(int(entry.name)):
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if sign in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = line.decode(errors="replace").strip()
        return found

    def memory(self) -> list[str]:
        """Return the names of this job in /dev/shm."""
        return _memory_of(self.job)

    def inject(self, fault: str) -> None:
        """Have the launcher carry a fault out, as `castor kill` does.

        Raises:
            ValueError: it says that this cannot be.
        """
        answer = ask(self.folder / "control.sock", {"op": "inject", "fault": fault})
        if answer is None or not answer["ok"]:
            raise ValueError(f"{fault}: {answer}")

    def kill_all(self) -> None:
        """Kill -9 every process of this run, all at once."""
        pids = [*self.processes()]
        send(pids, signal.SIGSTOP)
        send(pids, signal.SIGKILL)
        self.process.kill()  # were its sign not seen, it would be waited for, for ever
        self.process.wait()

    def wait(self, timeout_s: float = 300) -> Trial:
        """Wait for its end and for that of all that it has started.

        Raises:
            TrialTimeoutError: it did not end in time; it was killed.
        """
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            said = self.output()[-4000:]
            self.kill_all()
            raise TrialTimeoutError(f"no end after {timeout_s:g} s:\n{said}") from None
        deadline_s = time.monotonic() + _DEATH_S
        while (left := self.processes()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        result_file = self.folder / "result.json"
        result = json.loads(result_file.read_text()) if result_file.exists() else {}
        trial = Trial(
            folder=self.folder,
            code=code,
            output=self.output(),
            result=result,
            events=tuple(self.events()),
            processes_left=tuple(left.values()),
            memory_left=tuple(self.memory()),
        )
        send(left, signal.SIGKILL)
        return trial


@contextmanager
def running(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Start a run; whatever happens, none of its processes and memory outlives the block."""
    run = Running(folder, arguments, environment)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.kill_all()
        send(run.processes(), signal.SIGKILL)
        free_memory(run.job)


def free_memory(job: str) -> None:
    """Free what an ended job has in shared memory, as `castor clean` does: also what it kept.

    What that does not free, such as memory that somebody killed is still letting go, goes by name.
    """
    with contextlib.suppress(InputError):  # nothing is there, or not all of its processes are gone
        free(job)
    for name in _memory_of(job):
        (_SHM / name).unlink(missing_ok=True)


def _memory_of(job: str) -> list[str]:
    return sorted(path.name for path in _SHM.glob(f"castor-{job}*"))


def train(folder: Path, arguments: Sequence[str], timeout_s: float = 300) -> Trial:
    """Run `castor train` to its end.

    Raises:
        TrialTimeoutError: it did not end in time.
    """
    with running(folder, arguments) as run:
        return run.wait(timeout_s)


def plain(text: str) -> str:
    """Return `text` with every run of spaces and line ends as one space: screens wrap lines."""
    return re.sub(r"\s+", " ", text)

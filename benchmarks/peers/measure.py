"""One run of one system: start it, sample its memory, kill a rank, read what it logged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from leftovers import remove_left_since
from memory import Sampler, shared_bytes, tree
from systems import BIN, FLOORS, HERE, System, environment

from castor_records.run_files import RunFiles
from castor_runtime.arena import remove_dead

_POLL_S = 0.1


@dataclass(slots=True)
class Measured:
    """What one run gave; lists hold one value an iteration, the slowest rank's.

    Attributes:
        blocked_s: the trainer.
        usable_s: until a copy that outlives the rank was complete.
        restore_s: from its own memory or files into live tensors.
        fetch_s: from a peer's memory.
        kill_s: SIGKILL of a rank to the end of the next iteration on all ranks.
        machine_s: the same for a machine, replaced by a standby.
        peak_bytes: all processes and files in memory, during the iterations before the timed ones.
        steady_bytes: after them.
        standby_bytes: of Castor's standby machine, which holds its memory ready; not in the others.
        parts: seconds by part of Castor's recoveries, by name.
        error: why it has no, or not all, values.
    """

    blocked_s: list[float] = field(default_factory=list)
    usable_s: list[float] = field(default_factory=list)
    restore_s: list[float] = field(default_factory=list)
    fetch_s: list[float] = field(default_factory=list)
    kill_s: list[float] = field(default_factory=list)
    machine_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    steady_bytes: int = 0
    standby_bytes: int = 0
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str = ""


class Logs:
    """The ranks' logs of one run."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self._paths = [folder / f"rank-{rank}.jsonl" for rank in range(ranks)]

    def read(self) -> list[list[dict[str, Any]]]:
        """Return each rank's events so far."""
        return [_events(path) for path in self._paths]

    def saved(self) -> int:
        """Return the last iteration that all ranks have saved in their current lives."""
        return min(_last_saved(events) for events in self.read())

    def finished(self) -> bool:
        """Tell whether all ranks have come to the end of their program."""
        return all(events and events[-1]["kind"] == "finished" for events in self.read())


def run_floors(ranks: int, state_bytes: int, out: Path) -> dict[str, float]:
    """Return the floors' medians in seconds."""
    _start(FLOORS, ranks, state_bytes, 0, out, out / "tier").wait(timeout=300)
    found: dict[str, list[float]] = {}
    for events in Logs(out / "log", ranks).read():
        for event in events:
            if event["kind"] == "floor":
                found.setdefault(event["what"], []).append(event["seconds"])
    return {what: median(seconds) for what, seconds in found.items()}


def run(
    system: System, ranks: int, state_bytes: int, iterations: int, out: Path, limit_s: float
) -> Measured:
    """Run a system from its start to its end, with what goes wrong in the result."""
    tier = Path("/dev/shm") / f"castor-bench-peers-{os.getpid()}"
    shutil.rmtree(tier, ignore_errors=True)
    tier.mkdir()
    measured = Measured()
    began_s = time.time()
    shared_before = shared_bytes()
    process = _start(system, ranks, state_bytes, system.warm_up + iterations, out, tier)
    logs = Logs(out / "log", ranks)
    deadline = time.monotonic() + limit_s
    kills: list[int] = []
    try:
        sampler = Sampler(
            process.pid,
            shared_before,
            lambda: logs.saved() >= system.warm_up,
            lambda: _standby(out / "run"),
        )
        _wait(process, lambda: logs.saved() >= system.warm_up, deadline)
        sampler.stop()
        measured.peak_bytes, measured.steady_bytes = sampler.peak_bytes, sampler.last_bytes
        measured.standby_bytes = sampler.standby_bytes
        _wait(process, lambda: logs.saved() > system.warm_up + iterations, deadline)
        kills.append(_kill_rank(logs, ranks - 1))
        if system.peer_copy and (out / "run").exists():
            _wait(process, lambda: _lives(logs) == 2 and logs.saved() > 0, deadline)
            _kill_machine(out / "run", ranks - 1)
        # Castor's launcher still writes its result; peers may hang at the interpreter's exit.
        castor = (out / "run").exists()
        _wait(
            process,
            lambda: process.poll() is not None or (not castor and logs.finished()),
            deadline,
        )
    except _RunError as error:
        measured.error = f"{error}; {_tail(out)}"
    finally:
        sampler.stop()
        _end(process)
        remove_dead()  # a run that was stopped leaves memory for its next life
        remove_left_since(began_s)
        shutil.rmtree(tier, ignore_errors=True)
    if (out / "run").exists():
        kills += _injected_ns(out / "run")
    _collect(measured, logs.read(), system.warm_up, iterations, kills)
    if (out / "run" / "result.json").exists():
        _castor_recoveries(measured, out / "run")
    return measured


class _RunError(Exception):
    """The run did not do what it should."""


def _start(
    system: System, ranks: int, state_bytes: int, iterations: int, out: Path, tier: Path
) -> subprocess.Popen[bytes]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    program = [
        *(str(HERE / system.program), "--state-bytes", str(state_bytes)),
        *("--iterations", str(iterations), "--out", str(out / "log"), "--tier", str(tier)),
    ]
    with (out / "output.txt").open("wb") as output:
        return subprocess.Popen(
            system.command(ranks, out, program),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=out,
            env=environment(system),
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], done: Any, deadline: float) -> None:
    while not done():
        if process.poll() is not None:
            raise _RunError(f"it ended with code {process.returncode}")
        if time.monotonic() > deadline:
            raise _RunError("it took too long and was stopped")
        time.sleep(_POLL_S)


def _kill_rank(logs: Logs, rank: int) -> int:
    # A spare of the rank has written into its log, too.
    pid = next(e["pid"] for e in reversed(logs.read()[rank]) if e["kind"] == "saved")
    now_ns = time.time_ns()
    os.kill(pid, signal.SIGKILL)
    return now_ns


def _kill_machine(run: Path, machine: int) -> None:
    """Kill the processes of the agent that fills a machine, as `castor kill` does."""
    command = [str(BIN / "castor"), "kill", "--machine", str(machine), "--run", str(run)]
    subprocess.run(command, check=True, capture_output=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a run."""
    for pid in tree(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _collect(
    measured: Measured,
    logs: list[list[dict[str, Any]]],
    warm_up: int,
    iterations: int,
    kills: list[int],
) -> None:
    timed = range(warm_up + 1, warm_up + iterations + 1)
    for iteration in timed:
        saved = [_first(e, "saved", iteration) for e in logs]
        if None not in saved:
            measured.blocked_s.append(max(event["blocked_s"] for event in saved))
            measured.usable_s.append(max(event["usable_s"] for event in saved))
    for kind, into in (("restored", measured.restore_s), ("fetched", measured.fetch_s)):
        found = [[e["seconds"] for e in events if e["kind"] == kind] for events in logs]
        into += [max(values) for values in zip(*found, strict=False)]
    for kill, into in zip(kills, (measured.kill_s, measured.machine_s), strict=False):
        ends = [_first_after(events, kill) for events in logs]
        if None not in ends:
            into.append((max(ends) - kill) / 1e9)
    wrong = [e for events in logs for e in events if e.get("right") is False]
    if wrong:
        measured.error = f"{measured.error}; restored a wrong state {len(wrong)} times".strip("; ")
    elif kills and not measured.kill_s and not measured.error:
        measured.error = "no iteration ended after the kill"


def _standby(run: Path) -> int | None:
    try:
        return int(json.loads((run / "agents" / "spare-0" / "agent.json").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _injected_ns(run: Path) -> list[int]:
    """Return when Castor's own injector killed something: its command takes a while to start."""
    started_ns = RunFiles(run).run().started_ns
    failures = [e for e in _events(run / "events.jsonl") if e["kind"] == "failure"]
    return [started_ns + event["time_ns"] for event in failures]


def _castor_recoveries(measured: Measured, run: Path) -> None:
    """Take own-memory restore and peer fetch from the event log of real recoveries."""
    result = json.loads((run / "result.json").read_text())
    for number, recovery in enumerate(result["recoveries"]):
        seconds = {k: v for k, v in recovery["seconds"].items() if v}
        measured.parts[f"{recovery['kind']} {number}"] = seconds
    restored: dict[int, float] = {}
    for event in _events(run / "events.jsonl"):
        generation = event.get("generation")
        if event["kind"] == "resumed" and generation != 1 and event.get("iteration", 0) > 0:
            seconds = event.get("verify", 0.0) + event.get("restore", 0.0)
            restored[generation] = max(restored.get(generation, 0.0), seconds)
        if event["kind"] == "retrieved" and str(event.get("source", "")).startswith("peer"):
            measured.fetch_s.append(event["seconds"])
    measured.restore_s += restored.values()


def _lives(logs: Logs) -> int:
    return min(sum(e["kind"] == "recovered" for e in events) for events in logs.read())


def _last_saved(events: list[dict[str, Any]]) -> int:
    last = 0
    for event in events:
        if event["kind"] == "recovered":
            last = 0
        elif event["kind"] == "saved":
            last = event["iteration"]
    return last


def _first(events: list[dict[str, Any]], kind: str, iteration: int) -> Any:
    return next((e for e in events if e["kind"] == kind and e["iteration"] == iteration), None)


def _first_after(events: list[dict[str, Any]], instant_ns: int) -> Any:
    """Return when the first iteration ended that followed a recovery after the instant."""
    recovered = False
    for event in events:
        recovered |= event["kind"] == "recovered" and event["time_ns"] > instant_ns
        if recovered and event["kind"] == "iteration_ended":
            return event["time_ns"]
    return None


def _events(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a killed rank leaves half a line
            found.append(json.loads(line))
    return found


def _tail(out: Path) -> str:
    """Return the last line that looks like an error."""
    lines = (out / "output.txt").read_text(errors="replace").splitlines()
    errors = [line.strip() for line in lines if "Error" in line or "error:" in line]
    return (errors or lines or [""])[-1][-300:]
